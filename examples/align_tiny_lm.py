"""Align a tiny causal language model by DPO, in plain torch and transformers."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign import objectives

torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
policy = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
reference = copy.deepcopy(policy).requires_grad_(False)
# 1536 prompts of 4 words with 2 answers of 6; the chosen one holds more words below 16 (or as many).
prompt, answers = torch.randint(32, (1536, 4)), torch.randint(32, (1536, 2, 6))
order = (answers < 16).sum(-1, keepdim=True).argsort(dim=1, descending=True)
answers = answers.gather(1, order.expand_as(answers))


def log_probs(model, rows):
    """Log-probability of every answer word, [pair, candidate, word]."""
    tokens = torch.cat([prompt[rows, None].expand(-1, 2, -1), answers[rows]], dim=-1).flatten(0, 1)
    logits = model(tokens[:, :-1]).logits[:, prompt.shape[1] - 1 :].log_softmax(-1)
    return logits.gather(-1, tokens[:, prompt.shape[1] :, None]).reshape(answers[rows].shape)


def evaluate(loss, rows):
    """The objective's output on some pairs; every one is certain that its first answer is better."""
    scores = objectives.Scores(policy=log_probs(policy, rows), reference=log_probs(reference, rows))
    return loss(scores, objectives.Labels.pairs(len(rows)))


dpo, train, held_out = objectives.dpo(beta=0.1), torch.arange(1024), torch.arange(1024, 1536)
print(f"held-out accuracy before: {evaluate(dpo, held_out).metrics['accuracy'].mean():.1%}")
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
for rows in train.split(32):
    optimizer.zero_grad()
    evaluate(dpo, rows).loss.mean().backward()
    optimizer.step()
print(f"held-out accuracy after:  {evaluate(dpo, held_out).metrics['accuracy'].mean():.1%}")

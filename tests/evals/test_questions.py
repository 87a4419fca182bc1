"""BLIP's answers: a tiny network from disk against a straight-line computation, one question or many."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForQuestionAnswering

from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.questions import load_questions, written, yes_or_no

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "yes",
    "no",
    "a",
    "green",
    "bench",
    "?",
    "dog",
    "blue",
    "cat",
]
START = len(WORDS)


def write(folder, words=WORDS):
    (folder / "vocab.txt").write_text("\n".join(words))
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    text = {
        "vocab_size": START + 2,
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "bos_token_id": START,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def questions(folder):
    return load_questions(folder)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def straight(folder, image, ids):
    """The first answer token after reading `ids`, step by step."""
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    given = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1))[None]
    with torch.inference_mode():
        seen = model.vision_model(pixel_values=given)[0]
        states = model.text_encoder(input_ids=torch.tensor([ids]), encoder_hidden_states=seen)[0]
        logits = model.text_decoder(input_ids=torch.tensor([[START]]), encoder_hidden_states=states).logits[
            0, 0
        ]
    chances = logits.softmax(-1)
    return float(chances[WORDS.index("yes")] / (chances[WORDS.index("yes")] + chances[WORDS.index("no")]))


def test_probabilities_equal_a_straight_line_computation(folder, questions):
    image = picture(1)
    ids = [START + 1, *[WORDS.index(word) for word in ("a", "green", "bench", "?")], WORDS.index("[SEP]")]
    (found,) = questions.probabilities(image, ["A green bench?"])
    assert found == pytest.approx(straight(folder, image, ids), rel=1e-5)
    assert 0.0 < found < 1.0
    assert questions.probabilities(picture(2), ["A green bench?"]) != [found]


def test_no_answer_depends_on_the_other_questions(questions):
    asked = ["a dog?", "a green green green bench?", "cat", "a blue bench?"]
    image = picture(3)
    alone = [questions.probabilities(image, [question])[0] for question in asked]
    assert questions.probabilities(image, asked) == pytest.approx(alone, rel=1e-4)
    assert len({round(value, 6) for value in alone}) == 4
    assert questions(image, asked) == [questions.answers(image, [question])[0] for question in asked]
    assert questions.probabilities(image, []) == []
    assert questions(image, []) == []


def test_answers_are_words_without_special_tokens(questions):
    said = questions(picture(1), ["a dog?"])
    assert all("[" not in text for text in said)
    assert set(" ".join(said).split()) <= set(WORDS)


def test_questions_are_written_as_blip_was_taught():
    assert written('The "Red" hat (small), #1: a cat?') == "the red hat small, 1 a cat?"
    assert written("word " * 60).count("word") == 50


def test_yes_or_no_is_decided_at_one_half():
    tool = yes_or_no(lambda picture, questions: [0.5, 0.51, 0.0], name="my model")
    assert tool(picture(1), ["a", "b", "c"]) == ["no", "yes", "no"]
    assert tool.name == "my model"


def test_provenance_names_weights_and_preprocessing(questions, folder):
    provenance = questions.provenance()
    assert provenance["name"] == folder.name
    assert provenance["preprocessing"]["fit"] == "squash"
    assert "model.safetensors" in provenance["weights"]


def test_a_checkpoint_that_leaves_something_random_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("text_encoder.encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks text_encoder\.encoder\.layer\.0\.output\.dense\.weight"
    ):
        load_questions(tmp_path)


def test_a_vocabulary_without_yes_is_refused(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yea", *WORDS[6:]]
    with pytest.raises(CheckpointError, match=r"tokenizer: got \['yes'\], expected single tokens"):
        load_questions(write(tmp_path, words))


def test_a_folder_that_lacks_files_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        load_questions(tmp_path)

"""Prompts as ids of one length."""

import pytest

from mmalign.errors import CheckpointError
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.testing.reward_checkpoints.blip import write_imagereward
from mmalign.testing.reward_checkpoints.step_aware import write_clip_base


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return PromptTokens.clip(write_clip_base(tmp_path_factory.mktemp("clip")), length=11)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return write_imagereward(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def blip(bert_folder):
    from transformers import BertTokenizer

    size = len(BertTokenizer.from_pretrained(str(bert_folder))) + 2
    return PromptTokens.blip(bert_folder, length=7, vocabulary=size)


class TestClip:
    def test_a_short_prompt_is_padded_with_the_end_token(self, clip):
        row = clip.encode("light, face")
        end = clip.tokenizer.eos_token_id
        assert row.ids[0] == clip.tokenizer.bos_token_id
        assert row.ids[4:].tolist() == [end] * 7
        assert row.mask.tolist() == [1] * 5 + [0] * 6
        assert not row.truncated

    def test_a_long_prompt_keeps_its_end_token_and_is_counted(self, clip):
        row = clip.encode("light " * 10)
        assert row.truncated
        assert row.ids[-1] == clip.tokenizer.eos_token_id
        assert row.mask.tolist() == [1] * 11

    def test_the_longest_prompt_that_fits_is_not_counted(self, clip):
        assert not clip.encode("light " * 9).truncated

    @pytest.mark.parametrize("prompt", ["light<|endoftext|>face", "light <|StartOfText|> face"])
    def test_names_of_special_tokens_are_text(self, clip, prompt):
        row = clip.encode(prompt)
        special = {clip.tokenizer.bos_token_id, clip.tokenizer.eos_token_id}
        inner = row.ids[1 : int(row.mask.sum()) - 1].tolist()
        assert not special & set(inner)

    def test_several_prompts_are_stacked(self, clip):
        ids, mask = clip.encode_all(["light", "face", ""])
        assert ids.shape == mask.shape == (3, 11)
        assert ids[1].tolist() == clip.encode("face").ids.tolist()


class TestBlip:
    def test_the_first_token_stays_cls(self, blip):
        row = blip.encode("a painting")
        assert row.ids[0] == blip.tokenizer.cls_token_id
        assert row.ids.tolist()[3:] == [blip.tokenizer.sep_token_id, 0, 0, 0]

    def test_a_cut_prompt_ends_in_sep(self, blip):
        row = blip.encode("a painting of an ocean with clouds")
        assert row.truncated
        assert row.ids[-1] == blip.tokenizer.sep_token_id

    def test_blips_two_tokens_come_last(self, blip):
        size = len(blip.tokenizer)
        assert blip.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [size - 2, size - 1]

    def test_another_vocabulary_is_refused(self, bert_folder):
        with pytest.raises(CheckpointError, match=r"expected 30524, as the text tower has"):
            PromptTokens.blip(bert_folder, length=35, vocabulary=30524)

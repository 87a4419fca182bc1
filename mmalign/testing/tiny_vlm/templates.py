"""Chat templates of the same form as the published ones, in our words.

Every template takes messages whose content is text, or a list of `{"type": "image" | "video"}` and
`{"type": "text", "text": ...}`, and `add_generation_prompt`.
"""

__all__ = ["CHATML", "GEMMA", "IDEFICS", "INTERNVL", "LLAMA_CHAT", "ONEVISION", "QWEN", "QWEN3", "VICUNA"]

_TEXT = "{% if message.content is string %}{{ message.content }}{% else %}"


def _contents(image: str, video: str = "") -> str:
    """The content of `message`, in reading order."""
    return (
        _TEXT
        + "{% for item in message.content %}"
        + "{% if item.type == 'image' %}{{ '"
        + image
        + "' }}"
        + ("{% elif item.type == 'video' %}{{ '" + video + "' }}" if video else "")
        + "{% elif item.type == 'text' %}{{ item.text }}{% endif %}"
        + "{% endfor %}{% endif %}"
    )


def _chatml(image: str, video: str, default_system: str | None) -> str:
    turn = "{{ '<|im_start|>' + message.role + '\n' }}" + _contents(image, video) + "{{ '<|im_end|>\n' }}"
    opening = ""
    if default_system is not None:
        opening = (
            "{% if messages[0].role != 'system' %}"
            "{{ '<|im_start|>system\n" + default_system + "<|im_end|>\n' }}{% endif %}"
        )
    return (
        opening
        + "{% for message in messages %}"
        + turn
        + "{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _first_media(image: str, video: str) -> str:
    """Media of `message` before its text, each on its own line, whatever their order in the content."""
    return (
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for item in message.content if item.type in ['image', 'video'] %}"
        "{{ ('" + image + "' if item.type == 'image' else '" + video + "') + '\n' }}{% endfor %}"
        "{% for item in message.content if item.type == 'text' %}{{ item.text }}{% endfor %}{% endif %}"
    )


VICUNA = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ 'ASSISTANT: ' }}" + _contents("<image>") + "{{ ' ' }}"
    "{% elif message.role == 'user' %}"
    "{{ 'USER: ' }}" + _first_media("<image>", "<video>") + "{{ ' ' }}"
    "{% else %}" + _contents("<image>") + "{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA 1.5 and its video models: media first, and an answer ends with a space, without end token."""

LLAMA_CHAT = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{{ ' ' }}" + _contents("<image>") + "{{ eos_token }}"
    "{% elif message.role == 'user' %}"
    "{{ '[INST] ' }}" + _first_media("<image>", "<video>") + "{{ ' [/INST]' }}"
    "{% else %}{{ '<<SYS>>\n' }}" + _contents("<image>") + "{{ '\n<</SYS>>\n\n' }}{% endif %}"
    "{% endfor %}"
)
"""LLaVA 1.6 on Mistral: the prompt for an answer is the closed instruction."""

QWEN = _chatml(
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
    "You are a helpful assistant.",
)
"""Qwen2-VL and Qwen2.5-VL: with a system turn when none is given."""

QWEN3 = _chatml(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>", None
)
"""Qwen3-VL: no system turn of its own."""

CHATML = _chatml("", "", None)
"""Text models."""

ONEVISION = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + ' ' }}"
    "{% if message.content is string %}{{ '\n' + message.content }}{% else %}"
    "{% for item in message.content if item.type == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for item in message.content if item.type == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for item in message.content if item.type == 'text' %}{{ '\n' + item.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""LLaVA-OneVision: a space behind the role that the prompt for an answer lacks, no line break between turns.

A template that renders question and answer does not begin with the prompt for that answer.
"""

INTERNVL = _chatml("<IMG_CONTEXT>\n", "<video>\n", None)
"""InternVL 3: a placeholder and a line break, which the processor wraps in image tags."""

GEMMA = (
    "{{ bos_token }}"
    "{% set prefix = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{% set prefix.text = "
    "(message.content if message.content is string else message.content[0].text) + '\n\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ prefix.text }}"
    "{% set prefix.text = '' %}" + _contents("<start_of_image>") + "{{ '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma 3: begins with the token of the beginning, and a system text joins the first user turn."""

IDEFICS = (
    "{{ '<|im_start|>' }}"
    "{% for message in messages %}"
    "{{ message.role | capitalize }}"
    "{{ ':' if message.content is not string and message.content[0].type == 'image' else ': ' }}"
    + _contents("<image>")
    + "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Idefics 3 and SmolVLM: roles by name, and every turn ends with its own token."""

"""A chat template for models that were not made for chats: a line for each message, which starts with its role."""

from typing import Any

PLAIN_TEMPLATE = (
    "{{ BEGIN }}"
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def with_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the plain one; returns whether it had one of its own."""
    has_own = tokenizer.chat_template is not None
    if not has_own:
        starts_with_bos = bool(tokenizer.bos_token_id) and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        begin = "bos_token" if starts_with_bos else "''"
        tokenizer.chat_template = PLAIN_TEMPLATE.replace("BEGIN", begin)
    return has_own


def plain_template_note(name: str) -> str:
    """What a user should know of a model that has no template of its own."""
    return f"{name} has no chat template; a message becomes a line of text that starts with its role."

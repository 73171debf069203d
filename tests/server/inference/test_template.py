"""Templates render as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cyclora_core.errors import UserError
from cyclora_server.inference.template import ChatTemplate
from server.inference.builders import FOLDER

MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Grüße!\nHow are you?"},
    {"role": "assistant", "content": "  Fine.  "},
    {"role": "user", "content": "Good. 🎉"},
]
CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "pad_token": None,
}

TEMPLATES = {
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}"
    "{% endfor %}{{ pad_token }}{% if unk_token is defined %}?{% endif %}",
    "whitespace": """
        {%- for m in messages %}
            {% if m.role == 'user' %}
        U: {{ m['content'] | trim }}
            {% else %}
        A: {{ m['content'] -}}
            {% endif %}
        {% endfor %}
    """,
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
    "{{ dict(a='<&>') | tojson(ensure_ascii=true) }}",
    "namespace": "{% set ns = namespace(last='') %}{% for m in messages %}"
    "{% set ns.last = m.role %}{% endfor %}{{ ns.last }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}"
    "{% endgeneration %}|{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
    "given": "{{ tools is none }} {{ documents is none }} {{ mood }} {{ thinking is false }}",
    "date": "{{ strftime_now('%Y') }}",
    "slices": "{% for m in messages[1:][::-1] %}{{ m.role[:2] ~ m.content.split('\\n')[0] }}"
    "{% endfor %}",
}


def plain(template: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template=template,
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str) -> None:
    options = {"mood": "glad", "thinking": False}
    template = ChatTemplate.of(CONFIG | {"chat_template": TEMPLATES[name]}, None)
    assert template is not None

    expected = plain(TEMPLATES[name]).apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, **options
    )
    assert template.render(MESSAGES, options) == expected


def test_the_built_in_model_s_template_renders_as_in_transformers() -> None:
    config = json.loads((FOLDER / "tokenizer_config.json").read_text())
    template = ChatTemplate.of(config, None)
    assert template is not None

    reference: Any = AutoTokenizer.from_pretrained(FOLDER)
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert template.render(MESSAGES, {}) == expected


def test_a_file_of_its_own_goes_before_the_configuration() -> None:
    template = ChatTemplate.of({"chat_template": "old"}, "new")

    assert template is not None
    assert template.render(MESSAGES, {}) == "new"


def test_of_several_templates_the_default_is_taken() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    template = ChatTemplate.of({"chat_template": named}, None)

    assert template is not None
    assert template.render(MESSAGES, {}) == "d"


def test_a_model_without_a_template_has_none() -> None:
    assert ChatTemplate.of({}, None) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ undefined_thing.attribute }}",
        "{{ messages + 1 }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_a_template_cannot_do_is_the_request_s_error(source: str) -> None:
    with pytest.raises(UserError, match="template refuses"):
        ChatTemplate(source, {}).render(MESSAGES, {})


def test_a_template_says_why_it_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})

    with pytest.raises(UserError, match="roles must alternate"):
        template.render(MESSAGES, {})


@pytest.mark.parametrize("name", ["messages", "bos_token", "add_generation_prompt"])
def test_an_option_does_not_replace_what_the_server_sets(name: str) -> None:
    with pytest.raises(UserError, match=name):
        ChatTemplate("", {}).render(MESSAGES, {name: "x"})


def test_a_folder_with_its_template_in_a_file_renders_as_in_transformers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    source = "{{ eos_token }}{% for m in messages %}{{ m.role }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    template = ChatTemplate.of(config, source)
    assert template is not None

    reference: Any = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert template.render(MESSAGES, {}) == expected

from __future__ import annotations

from cyclora_core.peft import ModuleGroup, TargetModule, adapter_config


def module(name: str, group: ModuleGroup = ModuleGroup.ATTN) -> TargetModule:
    return TargetModule(name, 4, 4, group)


def test_target_modules_are_ends_of_names_where_these_say_enough() -> None:
    modules = [
        module("model.layers.0.attn.q"),
        module("model.layers.1.attn.q"),
        module("model.layers.0.mlp.up", ModuleGroup.MLP),
        module("lm_head", ModuleGroup.UNEMBED),
    ]

    config = adapter_config("org/tiny", 8, 16.0, [*modules[:2], modules[3]], modules)

    assert config["target_modules"] == ["lm_head", "q"]
    assert (config["r"], config["lora_alpha"]) == (8, 16.0)


def test_target_modules_are_whole_names_where_an_end_would_name_others_too() -> None:
    modules = [
        module("model.layers.0.attn.proj"),
        module("model.layers.0.mlp.proj", ModuleGroup.MLP),
    ]

    config = adapter_config("org/tiny", 8, 16.0, modules[:1], modules)

    assert config["target_modules"] == ["model.layers.0.attn.proj"]

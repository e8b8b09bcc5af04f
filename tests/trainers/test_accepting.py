"""Arguments of the trainers: one meaning, or one line."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainingArguments
from trl import DPOConfig

from cwdpo.config import recipe
from cwdpo.data.rows import Row
from cwdpo.models.adapters import add_lora, check_adapters
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer

Tiny = Callable[[str], Path]
OURS: dict[str, Any] = {"output_dir": "unused", "report_to": "none", "use_cpu": True}
LORA = peft.LoraConfig(r=2, target_modules=["gate_proj"], task_type="CAUSAL_LM")
RECORDS = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}] * 2
SPLITS = datasets.DatasetDict(train=datasets.Dataset.from_list(RECORDS), test=datasets.Dataset.from_list(RECORDS))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer makes its output directory."""
    monkeypatch.chdir(tmp_path)


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # whatever it says is compared by the caller
        make()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ({"args": TrainingArguments("x", report_to="none")}, "args is a transformers.TrainingArguments, but CWDPOTra"),
        (
            {"args": DPOConfig("x", bf16=False, report_to="none")},
            "args is a trl.DPOConfig, but CWDPOTrainer takes a CW",
        ),
        (
            {"args": SmoothSFTConfig(**OURS)},
            "args is a SmoothSFTConfig, but CWDPOTrainer takes a CWDPOConfig. Write `f",
        ),
        ({"args": {"beta": 0.1}}, "args is a dict, but CWDPOTrainer takes a CWDPOConfig."),
        ({"model": None}, "model is None, and not a transformers model. Write model="),
        ({"model": torch.nn.Linear(2, 2)}, "model is a torch.Linear, and not a transformers model. Give the tr"),
        ({"model": "/nowhere/at/all"}, "there is no directory /nowhere/at/all."),
        ({"peft_config": {"r": 4}}, "peft_config is a dict, and not a configuration of PEFT."),
        (
            {"peft_config": recipe.LoraConfig()},
            "peft_config is a LoraConfig, and not a configuration of PEFT. Write pe",
        ),
        (
            {"train_dataset": SPLITS},
            "train_dataset is a DatasetDict, with the splits train, test. Give one of them: tr",
        ),
        ({"train_dataset": "rows.jsonl"}, "train_dataset is the name 'rows.jsonl', and not rows. Load them, with "),
        ({"train_dataset": Path("rows.jsonl")}, "train_dataset is the name 'rows.jsonl', and not rows."),
        ({"train_dataset": iter(RECORDS)}, "train_dataset is a list_iterator, which has no rows to count."),
        ({"train_dataset": []}, "train_dataset has no rows."),
        ({"data_collator": list}, "data_collator is the class list, but the losses read batches of prompts with"),
        ({"engine": "tree"}, "engine is 'tree', and not an Engine. Write its name into args: engine='tree'."),
        ({"ref_model": 3}, "ref_model is an int, and not a transformers model."),
        ({"quantization_config": object()}, "quantization_config is for loading, and model is loaded already."),
        (
            {"model_init": load_policy},
            "model_init makes a new model for every trial of a search, and none is made here.",
        ),
        ({"beta": 0.1}, "beta belongs in CWDPOConfig: write args=CWDPOConfig(beta=0.1, ...)."),
        (
            {"train_datasets": RECORDS},
            "train_datasets is neither an argument of the trainer nor a setting. Did you mea",
        ),
        (
            {"dataset_text_field": "x"},
            "dataset_text_field is neither an argument of the trainer nor a setting. Leave it",
        ),
        ({"compute_metrics": "accuracy"}, "compute_metrics is 'accuracy', and not a function."),
        (
            {"peft_config": peft.LoraConfig(target_modules=["gate_proj", "qproj"])},
            "target_modules is ['qproj'], which is not a layer of this model. Did you mean `q_proj`",
        ),
        (
            {"peft_config": peft.LoraConfig(target_modules=".*qproj")},
            "target_modules is '.*qproj', which is not a layer of this model. Did you mean `q_proj`",
        ),
    ],
)
def test_a_wrong_kind_is_one_line(arguments: dict[str, Any], start: str, tiny: Tiny) -> None:
    given = {"model": load_policy(tiny("llava")), "processing_class": load_processor(tiny("llava"))} | arguments
    given = {"args": CWDPOConfig(**OURS), "train_dataset": RECORDS} | given
    assert refusal(lambda: CWDPOTrainer(**given)).startswith(start)


def test_a_model_is_needed() -> None:
    for trainer in (SmoothSFTTrainer, CWDPOTrainer):
        assert refusal(lambda trainer=trainer: trainer(train_dataset=[RECORDS[0] | {"gentle": "Sow."}])).startswith(
            "model is None, and not a"
        )


def test_models_are_not_saved_in_a_file(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    given: Any = {"model": load_policy(tiny("llava")), "processing_class": load_processor(tiny("llava"))}
    args = CWDPOConfig(**OURS | {"output_dir": "train.jsonl"})
    assert refusal(lambda: CWDPOTrainer(**given, args=args)).startswith("output_dir: train.jsonl is a file, and a dir")
    trainer = CWDPOTrainer(**given, args=CWDPOConfig(**OURS), train_dataset=RECORDS)
    assert refusal(lambda: trainer.save_model("train.jsonl")).startswith("save_model: train.jsonl is a file")
    text = refusal(lambda: trainer.train(resume_from_checkpoint="nope"))
    assert text == "there is no directory nope. True takes the newest one."


def test_a_model_of_text_alone_is_refused_without_its_processor() -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    model = LlamaForCausalLM(config)
    model.config.name_or_path = "."
    text = refusal(lambda: CWDPOTrainer(model, args=CWDPOConfig(**OURS)))
    assert text.startswith(". is a llama model, which does not read images.")


def test_pairs_of_one_answer_are_said(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    given: Any = {"model": load_policy(tiny("llava")), "args": CWDPOConfig(**OURS, max_steps=1)}
    same = [record | {"rejected": record["chosen"]} for record in RECORDS]
    CWDPOTrainer(**given, train_dataset=[*same, RECORDS[0]])._warn_of_equal_answers()
    assert not caplog.records
    CWDPOTrainer(**given, train_dataset=same)._warn_of_equal_answers()
    assert "the first 2 rows have the same answer as `chosen` and `rejected`" in caplog.text


def test_stage_1_refuses_the_same(tiny: Tiny) -> None:
    model, processor = load_policy(tiny("llava")), load_processor(tiny("llava"))
    common: dict[str, Any] = {"model": model, "processing_class": processor}
    text = refusal(lambda: SmoothSFTTrainer(args=CWDPOConfig(**OURS), **common))  # type: ignore[arg-type]
    assert text.startswith("args is a CWDPOConfig, but SmoothSFTTrainer takes a SmoothSFTConfig. Write `from cwdpo")
    text = refusal(lambda: SmoothSFTTrainer(args=SmoothSFTConfig(**OURS), train_dataset=SPLITS, **common))
    assert text.startswith("train_dataset is a DatasetDict")


def test_images_of_rows_in_memory_start_at_the_working_directory(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "m" / "a.png")
    records = [{**record, "images": ["m/a.png"]} for record in RECORDS]
    table = datasets.Dataset.from_list(records)
    given: Any = {"model": load_policy(tiny("llava")), "args": CWDPOConfig(**OURS, max_steps=1)}
    for rows in (table.cast_column("images", datasets.List(datasets.Image())), table, records):
        trainer = CWDPOTrainer(**given, train_dataset=rows)
        assert [batch["prompt_index"].tolist() for batch in trainer.get_train_dataloader()] == [[0, 0, 1, 1]]


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_what_is_wrong_with_the_first_row_is_said_before_a_model_is_loaded(name: str) -> None:
    def text(**row: object) -> str:
        rows: Any = {name: [RECORDS[0] | row]}
        return refusal(lambda: CWDPOTrainer("/nowhere/at/all", args=CWDPOConfig(**OURS), **rows))

    assert text(chosen="").startswith(f"{name}[0]: `chosen` is empty")
    assert text(images=["a.png"]).startswith(f"{name}[0]: image 'a.png' does not exist. Correct the path. Relative p")


def test_training_needs_rows(tiny: Tiny) -> None:
    trainer = CWDPOTrainer(load_policy(tiny("llava")), args=CWDPOConfig(**OURS))
    assert refusal(trainer.train) == "there is nothing to train on. Write CWDPOTrainer(..., train_dataset=rows)."


def test_a_processor_is_what_reads_images(tiny: Tiny) -> None:
    model, args = load_policy(tiny("llava")), CWDPOConfig(**OURS)
    tokenizer, processor = AutoTokenizer.from_pretrained(tiny("llava")), load_processor(tiny("llava"))
    for name in ("processing_class", "tokenizer"):
        text = refusal(lambda name=name: CWDPOTrainer(model, args=args, **{name: tokenizer}))  # type: ignore[misc]
        assert "(a tokenizer, which does not read images), and not a processor of a vision" in text
    assert CWDPOTrainer(model, args=args, tokenizer=processor).processing_class is processor
    assert "two names of one argument" in refusal(
        lambda: CWDPOTrainer(model, args=args, tokenizer=tokenizer, processing_class=processor)
    )
    beside = CWDPOTrainer(model, args=args).processing_class  # from where the model came
    assert type(beside) is type(processor)
    model.config.name_or_path = ""
    assert refusal(lambda: CWDPOTrainer(model, args=args)).startswith("pass processing_class=AutoProcessor")


def test_adapters_go_into_bare_models_once(tiny: Tiny) -> None:
    common: dict[str, Any] = {"args": CWDPOConfig(**OURS), "train_dataset": RECORDS}
    adapted = add_lora(load_policy(tiny("llava")), r=2, alpha=2)
    text = refusal(lambda: CWDPOTrainer(adapted, peft_config=LORA, **common))
    assert text.startswith("model is a PeftModel, and peft_config describes adapters too")
    prompt_tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    text = refusal(lambda: CWDPOTrainer(load_policy(tiny("llava")), peft_config=prompt_tuning, **common))
    assert text.startswith("PromptTuningConfig puts learned tokens before the prompt")
    adapted.add_adapter("second", LORA)
    adapted.base_model.set_adapter(["default", "second"])
    text = refusal(lambda: CWDPOTrainer(adapted, **common))
    assert text.startswith("2 adapters are active (default, second), and a resumed run would go on with the first")
    trainer = CWDPOTrainer(tiny("llava"), peft_config=LORA, **common)  # a path is a name too
    assert {name.split(".")[-4] for name, p in trainer.model.named_parameters() if p.requires_grad} == {"gate_proj"}


def test_new_adapters_follow_from_the_seed(tiny: Tiny) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(99 + seed)
        trainer = CWDPOTrainer(tiny("llava"), args=CWDPOConfig(**OURS, seed=seed), peft_config=LORA)
        return next(p for name, p in trainer.model.named_parameters() if "lora_A" in name).detach().clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_nothing_to_train_is_refused_where_there_are_rows_to_train_on(tiny: Tiny, rows: list[Row]) -> None:
    args = CWDPOConfig(**OURS)
    frozen = load_policy(tiny("llava")).requires_grad_(False)
    assert "Write `model.requires_grad_(True)`" in refusal(lambda: CWDPOTrainer(frozen, args=args, train_dataset=rows))
    adapted = add_lora(load_policy(tiny("llava")), r=2, alpha=2)
    adapted.requires_grad_(False)
    assert "is_trainable=True" in refusal(lambda: CWDPOTrainer(adapted, args=args, train_dataset=rows))
    assert CWDPOTrainer(frozen, args=args, eval_dataset=rows).train_dataset is None  # it can still be evaluated


def test_the_reference_is_another_model(tiny: Tiny) -> None:
    model, args = load_policy(tiny("llava")), CWDPOConfig(**OURS)
    text = refusal(lambda: CWDPOTrainer(model, model, args))
    assert text.startswith("ref_model is the model that is trained, so it would move with it.")
    trainer = CWDPOTrainer(model, str(tiny("llava")), args)
    assert trainer.ref_model is not None
    for ours, theirs in zip(model.parameters(), trainer.ref_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def tied(tiny: Tiny) -> Any:
    model = load_policy(tiny("qwen2_vl"))
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = True
    model.tie_weights()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return model


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_embeddings_take_no_adapters(target: str, tiny: Tiny) -> None:
    """However the adapters come in."""
    start = f"adapters on {'lm_head' if target == 'lm_head' else 'model.language_model.embed_tokens'} cannot be merged"
    names = [target, "gate_proj"]
    assert refusal(lambda: add_lora(tied(tiny), r=2, alpha=2, target_modules=names)).startswith(start)
    config = peft.LoraConfig(r=2, target_modules=names)
    common: dict[str, Any] = {"args": CWDPOConfig(**OURS), "processing_class": load_processor(tiny("qwen2_vl"))}
    assert refusal(lambda: CWDPOTrainer(tied(tiny), peft_config=config, **common)).startswith(start)
    adapted = peft.get_peft_model(tied(tiny), config)
    assert refusal(lambda: CWDPOTrainer(adapted, **common)).startswith(start)
    untied = add_lora(load_policy(tiny("qwen2_vl")), r=2, alpha=2, target_modules=names)
    check_adapters(untied)


def test_metrics_of_ones_own_see_the_predictions(make_trainer: Callable[..., Any], rows: list[Row]) -> None:
    seen = []

    def accuracy(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"right": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}

    made = make_trainer(2, eval_rows=rows)
    trainer = CWDPOTrainer(
        made.model,
        args=made.args,
        processing_class=made.processing_class,
        compute_metrics=accuracy,
        train_dataset=rows,
        eval_dataset=rows,
    )
    found = trainer.evaluate()
    assert found["eval_right"] == 1.0  # all rewards are 0 at the start, and argmax takes the first of equal ones
    assert seen[0].predictions.shape == (len(rows), 2)
    assert seen[0].label_ids.tolist() == [0] * len(rows)
    seen[0].predictions[:, 1] = 1.0
    assert accuracy(seen[0])["right"] == 0.0


def test_dropout_of_a_given_model_is_switched_off(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for disable in (True, False):
        model = load_policy(tiny("llava"))
        layer: Any = model.get_decoder().layers[0]
        layer.mlp.drop, layer.self_attn.attention_dropout = torch.nn.Dropout(0.5), 0.25
        adapted = peft.get_peft_model(model, dataclasses.replace(LORA, lora_dropout=0.125))
        CWDPOTrainer(adapted, args=CWDPOConfig(**OURS, disable_dropout=disable))
        assert (layer.mlp.drop.p, layer.self_attn.attention_dropout) == ((0.0, 0.0) if disable else (0.5, 0.25))
        assert layer.mlp.gate_proj.lora_dropout["default"].p == 0.125  # the adapters' own, which somebody wrote


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_given_model_may_drop_attention_at_random(make_trainer: Any, tiny: Tiny, stage: int) -> None:
    """As its owner set it: stage 1 leaves dropout alone, and stage 2 where it is asked to."""
    model = load_policy(tiny("llava"), dtype="float32")
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.25
    settings: dict[str, Any] = {"max_steps": 1} if stage == 1 else {"max_steps": 1, "disable_dropout": False}
    trainer = make_trainer(stage, model=model, engine="tree", **settings)
    trainer.train()
    assert [choice["engine"] for choice in trainer.engine.report["choices"]] == ["tree"]
    first = next(line for line in trainer.state.log_history if "loss" in line)
    assert first["loss"] > 0
    if stage == 2:
        assert first["rewards/margins"] != 0  # the reference does not drop

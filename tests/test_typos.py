"""Slips of the hand: in a name, a number, a word, a launcher's variable, a file of settings. Each is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

import ppt_kit as ppt
from ppt_kit.checks import check_fits
from ppt_kit.config import from_file, from_mapping, load_config
from ppt_kit.engine import check_settings
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import decide, local_share
from ppt_kit.schema import CollectConfig, Config, EvaluateConfig
from ppt_kit.words import own_words, parse_words


def told(call, *args, **options) -> str:
    """The one line of the mistake that a call makes."""
    with pytest.raises(UserError) as raised:
        call(*args, **options)
    assert len(str(raised.value).splitlines()) == 1, raised.value
    assert len(str(raised.value)) < 700
    return str(raised.value)


# ------------------------------------------------------------------ names that become files

NAMES = [
    (Config, "suffix"), (Config, "job_name"), (Config, "domains"), (CollectConfig, "domain"), (CollectConfig, "task"),
    (EvaluateConfig, "eval_log_name"), (EvaluateConfig, "task"), (EvaluateConfig, "domains"),
]  # fmt: skip
BAD_NAMES = [
    "../x", "/x", "a/b", "a\nb", "x" * 300, "ü" * 100, "a.zarr", "", ".", "..", "~", "~/x", "a\\b", ".hidden", "-x", " ", "a\tb",
    "a\x00b", "\udcff", "x.json", "C:x", "a*", "a|b", "a\u2028b",
]  # fmt: skip


@pytest.mark.parametrize(("schema", "key"), NAMES, ids=[key for _, key in NAMES])
def test_a_name_that_becomes_a_file_is_one_plain_name(schema, key):
    # a task may be one of a room's: gym_pusht/PushT-v0
    parted = {"a/b", "C:x"} if key == "task" else set()
    for name in set(BAD_NAMES) - parted:
        assert key in told(load_config, "", f"{key}={name}", schema=schema), name
    for name in parted:
        load_config("", f"{key}={name}", schema=schema)
    load_config("", f"{key}=exp 1.b_c-d#3", schema=schema)


def test_a_mapping_and_a_call_are_asked_for_plain_names_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("../x", "/x", "", "a.zarr"):
        assert "suffix" in told(ppt.UnifiedTrainer, {"suffix": name})
        assert "domains" in told(ppt.UnifiedTrainer, {"domains": ["a", name]})
        assert "domain" in told(ppt.collect, "reach", domain=name)
    assert not list(tmp_path.iterdir())


def test_the_names_of_many_domains_fit_into_the_name_of_one_folder():
    assert "255" in told(load_config, "", "domains=" + ",".join(f"{i:03}" + 40 * "x" for i in range(6)))
    load_config("", "domains=" + ",".join(f"{i:03}" + 40 * "x" for i in range(5)))


# ------------------------------------------------------------------ numbers

TOO_LARGE = [
    (Config, "seed", [2**64, 2**63, 2**32, 10**400, -1]), (Config, "policy.width", [10**6 * 8]),
    (Config, "policy.depth", [10**6]), (Config, "policy.num_heads", [10**6]),
    (Config, "dataset.observation_horizon", [10**6]), (Config, "dataset.action_horizon", [10**6]),
    (Config, "dataset.num_points", [10**6]), (Config, "policy.stems.state.num_latents", [10**6]),
    (Config, "batch_size", [10**9]), (Config, "world_size", [10**6]), (Config, "gradient_accumulation_steps", [10**9]),
    (Config, "train.total_epochs", [10**12, 10**30]), (Config, "optimizer.lr", [1e300, "1e999", "-1e-3"]),
    (Config, "augment.rotation_deg", ["[0,0,1e300]", "[0,0,inf]", "[0,0,nan]"]), (Config, "optimizer.eps", [1e300]),
    (Config, "dataset.cache_gb", [1e300]), (Config, "rendezvous_timeout_s", [1e300]),
    (Config, "dataset.crop_box", ["[0,0,0,1,1,1e300]"]), (Config, "augment.shift_px", [10**6]),
    (CollectConfig, "episodes", [10**12]), (CollectConfig, "seed", [2**64, 2**32]), (CollectConfig, "max_steps", [10**12]),
    (CollectConfig, "image_size", [10**6]), (CollectConfig, "num_points", [10**6]),
    (EvaluateConfig, "episodes", [10**12]), (EvaluateConfig, "seed", [2**64]), (EvaluateConfig, "n_procs", [10_000]),
    (EvaluateConfig, "videos", [10**12]), (EvaluateConfig, "execute_steps", [10**6]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "key", "values"), TOO_LARGE, ids=[f"{s.__name__}-{k}" for s, k, _ in TOO_LARGE])
def test_a_number_that_no_machine_holds_is_refused_with_its_bound(schema, key, values):
    for value in values:
        assert key in told(load_config, "", f"{key}={value}", schema=schema), value
        if isinstance(value, int):
            tree = OmegaConf.create({})
            OmegaConf.update(tree, key, value)
            assert key in told(ppt.UnifiedTrainer, tree) if schema is Config else True


def test_a_policy_and_a_batch_that_this_machine_cannot_hold_are_told_in_gigabytes():
    assert "policy.width" in told(check_fits, load_config("", "policy.width=16384", "policy.depth=1000"))
    many = load_config("", "batch_size=1000000", "dataset.num_points=100000", "dataset.observation_horizon=100")
    assert "batch_size" in told(check_fits, many)
    assert "GB" in told(ppt.UnifiedTrainer, many)
    assert "GB" in told(local_share, {}, world_size=100_000, num_devices=0)
    parallel = ("eval_mode=parallel", "n_procs=1000", "episodes=1000")
    has = load_config("", "policy.width=512", "policy.depth=12", "batch_size=256")
    check_fits(has)
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 250e9:
        assert "GB" in told(load_config, "", *parallel, schema=EvaluateConfig)


ODD = [
    ("train_mode", ["", "\n", "x" * 5000, "auto ", "auto\n"]),
    ("seed", ["٣", "１２", "1_000", "0x10", "010", "1:30", "1e3", "1.0", "+", "", "true", "null", "1 2", "0b1", "1,0", "'3'", "²", "9" * 5000]),
    ("optimizer.lr", ["٣", "1_0.5", "0x1p3", "1:30.5", "01.5", "true", "null", "1,5", ".", "e5", "1e", "", "0.1.2"]),
    ("debug", ["7", "0", "1", "yes", "on", "off", "no", "y", "TRUE", "null", "tru", "", "[true]"]),
    ("optimizer.betas", ["[1,", "[0.9,x]", "[0.9,٣]", "0x1,0", "{a: 1}", "[[0.9],0.9]", "null", "[0.9,true]", "[" * 5000]),
    ("dataset.state_keys", ["[a,", "[[a]]", "{a: b}", "", "[a: b]"]),
    ("normalizer.per_key", ["{a: limits, a: gaussian}", "{a: ", "[" * 5000, "7", "text", "[limits]"]),
    ("augment.state_parts", ["{eef_pos: ", "null", "3", "{eef_pos: 3}", "{a: {b: c}}"]),
    ("normalizer.per_domain", ["text", "3", "[a]", "null"]),
    ("policy.head.options", ["text", "3", "[a]", "null"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "texts"), ODD, ids=[key for key, _ in ODD])
def test_a_text_that_is_read_as_something_else_is_refused(key, texts):
    for text in texts:
        assert key in told(load_config, "", f"{key}={text}"), text


def test_what_is_a_number_and_what_is_a_text_stays_so():
    cfg = load_config(
        "", "optimizer.lr=1e-3", "seed= 7", "debug=True", "dataset.state_keys=[007,1e5,yes,'a,b']",
        "optimizer.betas=.9,0.99", "job_name=0x10", "domains={007: 2, b: 1.5}", "policy.head.options={a: yes, b: 1}",
    )  # fmt: skip
    assert (cfg.optimizer.lr, cfg.seed, cfg.debug, cfg.job_name) == (1e-3, 7, True, "0x10")
    assert list(cfg.dataset.state_keys) == ["007", "1e5", "yes", "a,b"]
    assert list(cfg.optimizer.betas) == [0.9, 0.99]
    assert dict(cfg.domains) == {"007": 2, "b": 1.5}
    assert dict(cfg.policy.head.options) == {"a": "yes", "b": 1}
    assert load_config("", "domains=2024").domains == 2024
    assert load_config("", "save_interval=${seed}", "seed=5").save_interval == 5


@pytest.mark.parametrize(
    "values",
    [
        {"seed": "3"}, {"seed": 3.0}, {"seed": True}, {"seed": None}, {"debug": 7}, {"debug": "yes"}, {"suffix": True}, {"suffix": 1.5},
        {"optimizer": {"lr": "1e-3"}}, {"optimizer": {"betas": 0.9}}, {"dataset": {"state_keys": "eef_pos"}}, {"dataset": 3},
        {"optimizer": {"lr": 10**400}}, {"seed": "???"}, {"seed": {"a": 1}}, {"dataset": {"state_keys": [1.5]}}, {"nokey": 1},
        {"seed": "${a}"}, {"domains": "${a}"}, {"seed": object()}, {None: 1}, "seed=3", ["seed=3"], 7, None,
    ],
    # two workers collect the same names
    ids=lambda values: repr(values).split(" at 0x")[0],
)  # fmt: skip
def test_a_mapping_holds_values_of_their_types(values):
    told(ppt.UnifiedTrainer, values)


@pytest.mark.parametrize("options", [{"task": "x"}, {"simulator": "metaworld"}, {"max_steps": 3}, {"seed": 1}], ids=str)
def test_an_option_of_a_simulator_is_none_of_the_keys(options):
    assert "is a key itself" in told(ppt.collect, "reach", options=options)


# ------------------------------------------------------------------ words

NO_WORDS = [
    ["=3"], ["--=3"], [".seed=1"], ["train.=1"], ["train..resume=auto"], [" seed=1"], ["seed =1"], ["train. resume=auto"],
    ["seed=1", "seed=2"], ["seed=1", "--seed", "2"], ["--debug", "debug=false"], ["--"], ["-"], ["-x"], ["-seed=3"], ["---seed=1"],
    ["seed==1"], ["x"], ["seed"], ["--seed"], ["--suffix"], ["--suffix", "--debug"], ["--suffix", "seed=1"], ["+seed=1"],
    ["++seed=1"], ["~seed"], ["--trace"], ["--interactive"], ["--verbose"], ["--completion"], ["--separator"], ["--separator=x"], ["--help=1"],
    ["--local_rankx"], ["--local_rankx=0"], ["--local_rank=x"], ["--local-rank="], ["--local_rank=-1"], ["--local"],
    ["seed=1", "--", "--trace"], ["--", "--interactive"], ["seed=1", "-", "x"], ["--debug", "nonsense"], ["--config-name"],
    ["--config-name=a", "config_name=b"], ["config_name=quikstart"], ["--config-path=absent"], ["config-name=x"], [""], [" "], ["\n"],
    ["\x00=1"], ["\udcff=1"], ["seed=\udcff"], ["x" * 5000], ["x" * 5000 + "=1"], ["suffix=" + "x" * 5000], ["deepspeed=" + "x" * 5000],
    ["--config-name=" + "x" * 5000], ["--config-path=" + "x" * 5000], ["--config-name="], ["--config-path="], ["--config-name=."], ["--config-name=.."],
    ["train.pretrained_dir=" + "x" * 300], ["dataset_path=a\nb"], ["output_dir="], ["train/resume=auto"], ["help", "seed=1"],
    ["policy=absent"], ["domains.a=3"], ["augment.action_parts.a.b.c=3"], ["suffix=${"], ["suffix=${nowhere}"], ["suffix=${suffix}"],
    ["seed=${oc.env:NOWHERE_SET}"], ["seed=${seed}"], ["optimizer.betas=[${"],
]  # fmt: skip


@pytest.mark.parametrize(
    "words", NO_WORDS, ids=[" ".join(words)[:30].encode("unicode_escape").decode() for words in NO_WORDS]
)
def test_a_word_of_no_grammar_is_one_line_and_exit_code_2(words, tmp_path, run_here):
    done = run_here(str(ROOT / "scripts/train.py"), *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script", ["eval_sim.py", "collect_demos.py", "convert_dataset.py", "quickstart.py", "bench.py"]
)
def test_every_script_has_that_grammar(script, tmp_path, run_here):
    first = ["loader"] if script == "bench.py" else []
    for words in (["--trace"], ["-"], ["--"], ["-x"], ["=3"], ["--interactive"], ["nonsense"], ["x=1", "x=2"]):
        done = run_here(str(ROOT / "scripts" / script), *first, *words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), words


@pytest.mark.parametrize(
    "words",
    [["--help"], ["-h"], ["help"], ["seed=1", "--help"], ["nonsense", "-h"], ["--suffix", "--help"]],
    ids=" ".join,
)
def test_help_anywhere_is_help(words, tmp_path, run_here):
    done = run_here(str(ROOT / "scripts/train.py"), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python" in done.stdout


def test_the_words_of_launchers_are_dropped_and_no_others():
    given = ["--local_rank=3", "seed=1", "--local-rank", "2", "--local_rank", "debug=true"]
    assert own_words(given) == ["seed=1", "debug=true"]
    assert "a launcher adds it" in told(own_words, ["--local_rank=x"])


def test_dashes_of_the_shell_are_underscores_and_a_value_may_be_anything():
    pairs = parse_words(
        ["--batch-size=3", "--suffix", "-x y", "--train.save-every-minutes", "2", "output_dir=a=b", "seed=1", "seed=1"]
    )
    assert pairs == [
        ("batch_size", "3"), ("suffix", "-x y"), ("train.save_every_minutes", "2"), ("output_dir", "a=b"), ("seed", "1"), ("seed", "1"),
    ]  # fmt: skip
    assert "'seed=1'" in told(parse_words, [{"seed": 1}])


# ------------------------------------------------------------------ what a launcher says

RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
NODE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}
NO_LAUNCH = [
    *({**RANK, name: text} for name in RANK for text in ("two", "", "1.5", "-1", "1e0", "٣", " 1", "9" * 30)),
    *({**RANK, name: text} for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") for text in ("x", "", "0", "-2")),
    *({**RANK, "MASTER_PORT": text} for text in ("http", "", "0", "70000", "-1")),
    {**RANK, "RANK": "5"}, {**RANK, "RANK": "2"}, {**RANK, "WORLD_SIZE": "0"}, {**RANK, "LOCAL_RANK": "1"},
    {**RANK, "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, {**RANK, "LOCAL_WORLD_SIZE": "3"},
    {"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    {"RANK": "0", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "x"}, {"MASTER_PORT": "http"}, {"LOCAL_WORLD_SIZE": "x"},
    {**NODE, "MASTER_ADDR": ""}, {**NODE, "RANK": "2"},
]  # fmt: skip


@pytest.mark.parametrize("env", NO_LAUNCH, ids=[" ".join(f"{k}={v}" for k, v in env.items()) for env in NO_LAUNCH])
@pytest.mark.parametrize("mode", ["auto", "single", "distributed"])
def test_a_launcher_that_contradicts_itself_is_one_line(env, mode, monkeypatch):
    assert any(name in told(decide, mode, world_size=1, env=env, num_devices=0) for name in env)
    assert any(name in told(local_share, env, world_size=1, num_devices=0) for name in env)


def test_a_node_whose_variables_were_set_by_hand_does_not_train_alone():
    assert decide("auto", world_size=1, env=NODE, num_devices=0) == "spawn"
    assert "train_mode=auto" in told(decide, "single", world_size=1, env=NODE, num_devices=0)
    assert decide("auto", world_size=1, env={"LOCAL_RANK": "0"}, num_devices=0) == "single"
    over = {**NODE, "RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert "LOCAL_WORLD_SIZE=2" in told(local_share, over, world_size=1, num_devices=0)


def test_a_rank_without_a_launcher_says_so(monkeypatch):
    for name in RANK:
        monkeypatch.delenv(name, raising=False)
    assert "no launcher" in told(ppt.UnifiedTrainer(load_config()).run_distributed)


def test_the_ranks_of_a_launch_tell_one_mistake_once(tmp_path, small_cfg, capfd):
    """They meet it where the process that starts them could not: here it did not look."""
    from ppt_kit.jobs.failures import tell_once
    from ppt_kit.jobs.job import Job

    cfg = small_cfg("train_mode=distributed", "world_size=2", "domains=nowhere")
    folder = tmp_path / "run/launch"
    folder.mkdir(parents=True)
    (folder / "job.json").touch()
    for _ in range(2):
        tell_once(UserError("domains=nowhere"), folder)
    assert capfd.readouterr().err == "error: domains=nowhere\n"
    (folder / "job.json").unlink()
    job = Job.start(cfg, tmp_path / "run", world_size=2, num_devices=0, detached=True)
    assert not list(folder.glob("told-*"))
    assert job.wait(120) == 2
    assert job.output().startswith("error: domains=nowhere")
    assert len(job.output().splitlines()) == 1, job.output()


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["--supervise"], ["absent.yaml"], ["--local_rank=x"], ["--trace"]], ids=str
)
def test_the_module_of_the_ranks_started_by_hand_is_one_line(words, tmp_path, monkeypatch, capfd):
    from ppt_kit.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ppt_kit", *words])
    assert main() == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ files of configurations

BROKEN = [
    ("seed: 1\n\tdebug: true\n", "line 2"), ("seed: [1,\ndomains: a\n", "line"), ("seed: 1\nseed: 2\n", "line 2: seed is given twice"),
    ("dataset:\n  val_ratio: 0.1\n  val_ratio: 0.2\n", "line 3"), (b"\x80\x81\xfe\xff", "UTF-8"), ("seed: 1\n".encode("utf-16"), "UTF-8"),
    (b"\x00\x01\x02", "line 1"), ("- seed\n- 1\n", "keys with values"), ("just text", "keys with values"), ("7", "keys with values"),
    ("save_interval: ${nowhere}\n", "save_interval"), ("save_interval: ${log_interval}\nlog_interval: ${save_interval}\n", "interpolation"),
    ("save_interval: ${oc.env:NOWHERE_SET}\n", "NOWHERE_SET"), ("save_interval: ${\n", "mine"), ("save_interval: '${'\n", "mine"),
    ("defaults: [mine, _self_]\n", "lead back"), ("defaults: [other, _self_]\n", "lead back"), ("defaults: quickstart\n", "list"),
    ("defaults:\n  - policy: absent\n", "policy/absent"), ("defaults: [absent]\n", "absent"), ("defaults: [[a]]\n", "mine"), ("defaults: [{a: {b: c}}]\n", "mine"),
    ("seed: 0x10\n", "line 1"), ("seed: 010\n", "line 1"), ("seed: 1:30\n", "line 1"), ("seed: 1_000\n", "line 1"), ("seed: ٣\n", "whole number"),
    ("seed: '3'\n", "whole number"), ("seed: 1e3\n", "whole number"), ("seed: 3.0\n", "whole number"), ("debug: yes\n", "line 1"), ("debug: 7\n", "true or false"),
    ("debug: 'true'\n", "true or false"), ("\n\ndebug: on\n", "line 3"), ("suffix: 007\n", "line 1"), ("suffix: a/b\n", "suffix"), ("optimizer: {lr: .nan}\n", "finite"),
    ("optimizer: {lr: .inf}\n", "finite"), ("seed:\n", "whole number"), ("dataset:\n", "group of keys"), ("seed: ???\n", "give it a value"),
    ("seed: *nowhere\n", "line 1"), ("a: &a [*a]\n", "mine"), ("seed: !!python/object:os.system x\n", "mine"), ("--- \nseed: 1\n---\nseed: 2\n", "line 3"),
    ("seed: 1: 2\n", "line 1"), ("? [a, b]\n: 1\n", "mine"), ("suffix: 'a\n", "line"), ("null: 1\n", "mine"), ("1: 1\n", "unknown key"), ("on: 1\n", "line 1"), ("[" * 5000, "mine"),
    ("sede: 1\n", "Did you mean seed"), ("domains: ../a\n", "domains"), ("hydra: {run: {dir: x}}\n", "mine"), ("defaults: [{override policy: x}]\n", "mine"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BROKEN, ids=[repr(text)[:40] for text, _ in BROKEN])
def test_a_broken_configuration_is_one_line_with_file_and_place(text, says, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "other.yaml").write_text("defaults: [mine]\n")
    line = told(load_config, "mine", config_path=tmp_path)
    assert says in line
    assert "mine" in line or "interpolation" in line or says in ("suffix", "domains", "finite")


@pytest.mark.parametrize(("text", "says"), [case for case in BROKEN if b"defaults" not in (case[0] if isinstance(case[0], bytes) else case[0].encode())], ids=lambda each: repr(each)[:40])  # fmt: skip
def test_the_configuration_of_a_run_folder_is_read_with_the_same_eyes(text, says, tmp_path):
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    told(from_file, tmp_path / "config.yaml")


def test_what_is_no_file_of_a_configuration_is_named(tmp_path):
    (tmp_path / "x.yaml").mkdir()
    (tmp_path / "y.yaml").symlink_to(tmp_path / "nowhere")
    for name in ("x", "y", "x.yaml", "absent", "/", "a/../x", "\x00", "a" * 400):
        told(load_config, name, config_path=tmp_path)
    for path in (tmp_path, tmp_path / "x.yaml", tmp_path / "y.yaml", "a" * 400):
        told(from_file, path)
    told(load_config, "quickstart", config_path=tmp_path / "y.yaml")


def test_a_group_and_its_keys_may_both_be_given_and_two_files_of_it_may_not(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/tiny.yaml").write_text("width: 32\nnum_heads: 2\n")
    (tmp_path / "policy/small.yaml").write_text("width: 64\nnum_heads: 2\n")
    (tmp_path / "policy/broken.yaml").write_text("width: 0x20\n")
    (tmp_path / "mine.yaml").write_text("defaults: [quickstart, _self_]\n")
    for words in (["policy=tiny", "policy.width=48"], ["policy.width=48", "policy=tiny"]):
        assert load_config("mine", *words, config_path=tmp_path).policy.width == 48
    assert "policy is given twice" in told(load_config, "mine", "policy=tiny", "policy=small", config_path=tmp_path)
    assert "broken.yaml, line 1" in told(load_config, "mine", "policy=broken", config_path=tmp_path)


# ------------------------------------------------------------------ files of DeepSpeed

NO_SETTINGS = [
    ("[1]", "object"), ("7", "object"), ('"zero"', "object"), ("null", "object"), ("true", "object"), ("", "line 1"), ("{", "line 1"), ("{'a': 1}", "line 1"),
    ('{\n"zero_optimization": {"stage": 1,}}', "line 2"), ("{}".encode("utf-16"), "UTF-8"), (b"\x80\xff", "UTF-8"), ('{"a": NaN}', "NaN"), ("[" * 100_000, "mine.json"),
    ('{"dump_state": true, "dump_state": false}', "dump_state is given twice"), ('{"zero_optimization": {"stage": 1, "stage": 2}}', "stage is given twice"),
    *((json.dumps({"zero_optimization": {"stage": stage}}), "zero_optimization.stage") for stage in (7, "two", True, -1, 1.5, 2.0, None, "1", "auto", [1], {})),
    *((json.dumps({"zero_optimization": whole}), "zero_optimization") for whole in (1, True, None, "on", [1])),
    *((json.dumps({"zero_optimization": {"reduce_bucket_size": size}}), "reduce_bucket_size") for size in ("5e8", -5, 0, True, 1.5, 1e300, [5], {}, None)),
    *((json.dumps({"zero_optimization": {"overlap_comm": flag}}), "overlap_comm") for flag in ("yes", 1, 0.5, [True])),
    *((json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": off}}), "offload_optimizer") for off in
      ("cpu", True, 1, {"device": "gpu"}, {"device": 1}, {"device": None}, {"device": "cpu", "pin_memory": "yes"}, {"ratio": 5}, {"buffer_count": "4"})),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"ratio": 0.5}}}', "ZeRO Stage 3"),
    ('{"zero_optimization": {"stage": 3, "leaf_module": {"classes": 5}}}', "leaf_module"),
    ('{"zero_optimization": {"stage": 0, "compute_grad_norm": false}}', "compute_grad_norm"),
    ('{"communication_data_type": "int8"}', "communication_data_type"), ('{"prescale_gradients": "no"}', "prescale_gradients"),
    ('{"gradient_predivide_factor": "2"}', "gradient_predivide_factor"), ('{"wall_clock_breakdown": 1}', "wall_clock_breakdown"),
    ('{"flops_profiler": {"enabled": "yes"}}', "flops_profiler.enabled"), ('{"flops_profiler": true}', "flops_profiler"), ('{"aio": {"block_size": "big"}}', "aio.block_size"),
    ('{"comms_logger": {"prof_ops": "all"}}', "comms_logger.prof_ops"), ('{"zero_optimization": {"reduce_bucket_size": ' + "9" * 400 + "}}", "reduce_bucket_size"),
    ("9" * 5000, "mine.json"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), NO_SETTINGS, ids=[repr(text)[:60] for text, _ in NO_SETTINGS])
def test_a_broken_file_of_deepspeeds_is_one_line_with_file_and_key(text, says, tmp_path):
    (tmp_path / "mine.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    line = told(check_settings, load_config("quickstart", f"deepspeed={tmp_path / 'mine.json'}"))
    assert says in line
    assert "mine.json" in line


def test_what_is_no_file_of_deepspeeds_is_named(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    assert "is a folder" in told(check_settings, load_config("", f"deepspeed={tmp_path / 'folder.json'}"))
    for name in (tmp_path / "link.json", tmp_path, "zero0.json", "zero", "./zero0"):
        told(check_settings, load_config("", f"deepspeed={name}"))


def test_settings_that_deepspeed_takes_are_taken(tmp_path):
    whole = {
        "zero_optimization": {
            "stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": None, "offload_optimizer": None, "offload_param": {"device": "none"},
            "leaf_module": {"names": ["a"]}, "stage3_max_live_parameters": 10, "sub_group_size": 1e9,
        },
        "communication_data_type": "fp32", "flops_profiler": {"enabled": False, "output_file": None, "module_depth": -1},
        "comms_logger": {"prof_ops": ["all_reduce"]}, "aio": {"block_size": 1048576}, "gradient_predivide_factor": 1,
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    assert check_settings(load_config("", f"deepspeed={tmp_path / 'mine.json'}")) == whole


# ------------------------------------------------------------------ mappings as one value

WHOLE = {
    "augment.state_parts": {}, "normalizer.per_key": {}, "policy.head.options": {}, "domains": {"a": 1, "b": 2},
}  # fmt: skip


@pytest.mark.parametrize("key", list(WHOLE))
def test_a_mapping_given_as_a_whole_takes_the_place_of_the_default(key, tmp_path):
    wanted = WHOLE[key]
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist([f"{key}={json.dumps(wanted)}"])))
    by_word = load_config("", f"{key}={json.dumps(wanted)}")
    for cfg in (by_word, load_config("mine", config_path=tmp_path), ppt.UnifiedTrainer(by_word).cfg):
        assert OmegaConf.to_container(cfg)[key.split(".")[0]] is not None
        assert OmegaConf.select(cfg, key) == wanted
    stored = OmegaConf.to_container(load_config("", f"{key}={json.dumps(wanted)}"))
    assert OmegaConf.to_container(from_mapping(stored)) == stored
    OmegaConf.save(by_word, tmp_path / "config.yaml")
    assert OmegaConf.to_container(from_file(tmp_path / "config.yaml")) == stored


def test_parts_of_a_mapping_add_to_it_whatever_their_order():
    words = ["augment.state_parts.tcp=position", "augment.state_parts={eef_pos: none}"]
    for order in (words, words[::-1]):
        assert load_config("", *order).augment.state_parts == {"eef_pos": "none", "tcp": "position"}
    assert len(load_config("", words[0]).augment.state_parts) == 5


def test_a_command_with_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path):
    """What imports and launchers' variables say on the way would be further lines."""
    env = {**os.environ, "RANK": "two", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--local_rank=0", "suffix=run"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: RANK='two'")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())

"""Words -> configuration, and every mistake a person makes on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ppt_kit.checks import domain_names, part_names
from ppt_kit.config import PACKAGE_CONFIGS, from_file, load_config
from ppt_kit.errors import UserError
from ppt_kit.help import describe_keys
from ppt_kit.keys import leaves_of
from ppt_kit.models.heads import HEADS
from ppt_kit.schema import CollectConfig, Config, EvaluateConfig
from ppt_kit.words import parse_words


def test_words_of_shell_and_cell_are_one_grammar():
    assert parse_words(["seed=1", "--seed=1", "--seed", "1", "--debug"]) == [("seed", "1")] * 3 + [("debug", "true")]


def test_words_change_the_file_and_keep_their_types():
    cfg = load_config(
        "quickstart", "train.total_epochs=3", "--optimizer.lr=1e-5", "suffix=rollout #3", "seed=7", "debug=true"
    )
    assert cfg.train.total_epochs == 3
    assert cfg.optimizer.lr == pytest.approx(1e-5)
    assert (cfg.suffix, cfg.seed, cfg.debug) == ("rollout #3", 7, True)


@pytest.mark.parametrize("text", ["1e5", "007", "null_run", "true"])
def test_text_that_looks_like_a_number_stays_text(text):
    assert load_config("", f"job_name={text}").job_name == text


def test_null_empties_a_key_that_may_be_empty():
    assert load_config("quickstart", "suffix=null").suffix is None
    with pytest.raises(UserError, match="seed"):
        load_config("quickstart", "seed=null")


def test_lists_with_and_without_brackets():
    for words in ("dataset.state_keys=[a,b]", "dataset.state_keys=a,b"):
        assert list(load_config("quickstart", words).dataset.state_keys) == ["a", "b"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.total_epoch=2", "Did you mean train.total_epochs"),
        ("lr=1", "Did you mean optimizer.lr"),
        ("traim.total_epochs=2", "Did you mean train.total_epochs"),
        ("seed=x", "whole number"),
        ("seed=1.5", "whole number"),
        ("debug=perhaps", "true or false"),
        ("batch_size=0", "at least 1"),
        ("precision=bf61", "Did you mean bf16"),
        ("train=3", "group of keys"),
        ("nonsense", "key=value"),
        ("domains=", "names no dataset"),
        ("domains=a,a", "twice"),
        ("domains={a: -1}", "Weights"),
        ("dataset.point_channels=8", "takes 3, 4"),
        ("policy.width=30", "multiple of policy.num_heads"),
        ("suffix=a/b", "one plain name"),
        ("train.freeze_trunk=true", "train.pretrained_dir"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("augment.hue=0.6", "at most 0.5"),
        ("augment.rotation_deg=[0,0,x]", "list of numbers"),
        ("augment.rotation_deg=[0,0,30]", "augment.action_parts is empty"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(word, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        load_config("quickstart", word)


def test_a_chunk_that_ends_before_now_is_refused():
    with pytest.raises(UserError, match="action_horizon"):
        load_config(
            "quickstart", "dataset.hist_action_cond=true", "dataset.action_horizon=2", "dataset.observation_horizon=3"
        )


def test_a_config_of_the_users_own_with_defaults_groups_and_interpolation(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/tiny.yaml").write_text("width: 32\nnum_heads: 2\n")
    (tmp_path / "mine.yaml").write_text(
        "defaults: [quickstart, _self_]\nseed: 5\nsave_interval: ${train.val_interval}\n"
    )
    cfg = load_config("mine", "policy=tiny", "train.val_interval=7", config_path=tmp_path)
    assert (cfg.seed, cfg.policy.width, cfg.save_interval, cfg.batch_size) == (5, 32, 7, 32)


@pytest.mark.parametrize("name", ["quickstart", ""])
def test_every_shipped_head_is_a_word_in_every_spelling(name):
    files = sorted(path.stem for path in (PACKAGE_CONFIGS / "policy/head").glob("*.yaml"))
    assert files == sorted([*HEADS, "diffusion_transformer"])
    for file in files:
        said = load_config(name, f"policy/head={file}").policy.head
        assert said.kind == file.removesuffix("_transformer")
        assert said == load_config(name, f"--policy.head={file}").policy.head
    cfg = load_config(name, "policy.head.options.num_steps=3", "policy/head=flow")
    assert (cfg.policy.head.options.num_steps, cfg.policy.head.options.solver) == (3, "euler")


@pytest.mark.parametrize("name", ["quickstart", ""])
@pytest.mark.parametrize("word", ["policy/head=flwo", "policy.head=flwo"])
def test_a_file_that_a_group_does_not_have_is_refused_with_those_it_has(name, word):
    with pytest.raises(
        UserError, match="no such file of the group policy/head: cvae, .*regression.* Did you mean flow"
    ):
        load_config(name, word)
    with pytest.raises(UserError, match="unknown key policy/heads. Did you mean policy/head"):
        load_config(name, "policy/heads=flow")


def test_a_group_of_the_users_own_stands_before_the_shipped_one(tmp_path):
    (tmp_path / "policy/head").mkdir(parents=True)
    (tmp_path / "policy/head/flow.yaml").write_text("kind: flow\noptions: {num_steps: 2}\n")
    (tmp_path / "mine.yaml").write_text("seed: 5\n")
    for word, options in (("policy/head=flow", {"num_steps": 2}), ("policy/head=mlp", {"loss": "l1", "num_layers": 2})):
        assert load_config("mine", word, config_path=tmp_path).policy.head.options == options


def test_options_of_another_head_are_not_kept_by_a_group(tmp_path):
    (tmp_path / "mine.yaml").write_text("policy: {head: {kind: flow, options: {solver: heun}}}\n")
    assert load_config("mine", config_path=tmp_path).policy.head.options == {"solver": "heun"}
    head = load_config("mine", "policy/head=mlp", "policy.head.options.loss=mse", config_path=tmp_path).policy.head
    assert (head.kind, head.options) == ("mlp", {"loss": "mse", "num_layers": 2})


@pytest.mark.parametrize("word", ["policy/head=mlp", "policy.head=mlp"])
@pytest.mark.parametrize("name", ["mine", "next"])
def test_a_group_that_a_file_chooses_is_chosen_again_by_a_word(tmp_path, name, word):
    """Also where a file that it names has chosen; the group of another word is added."""
    (tmp_path / "mine.yaml").write_text("defaults: [quickstart, policy/head: flow, _self_]\nseed: 5\n")
    (tmp_path / "next.yaml").write_text("defaults: [mine, _self_]\n")
    assert load_config(name, config_path=tmp_path).policy.head.kind == "flow"
    cfg = load_config(name, word, "policy/stems/pointcloud=dp3", config_path=tmp_path)
    assert (cfg.policy.head.kind, cfg.policy.stems.pointcloud.kind, cfg.seed) == ("mlp", "dp3", 5)
    assert cfg.policy.head.options == load_config("quickstart", "policy/head=mlp").policy.head.options
    # a group of a group, told from its file, is one too; and one that goes with the file that chose it
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/small.yaml").write_text("defaults: [{head: flow}]\nwidth: 32\n")
    (tmp_path / "policy/big.yaml").write_text("width: 64\n")
    (tmp_path / "here.yaml").write_text("defaults: [quickstart, policy/head@policy.head: flow, _self_]\n")
    assert load_config("here", word, config_path=tmp_path).policy.head.kind == "mlp"
    (tmp_path / "inner.yaml").write_text("defaults: [quickstart, policy: small, _self_]\n")
    for more, width in (([], 32), (["policy=big"], 64)):
        policy = load_config("inner", *more, word, config_path=tmp_path).policy
        assert (policy.head.kind, policy.width) == ("mlp", width)
    # the same again is the same
    assert load_config(name, "policy/head=flow", config_path=tmp_path) == load_config(name, config_path=tmp_path)


def test_parts_of_a_pose_come_from_words_and_files(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "domains: a,b\naugment: {rotation_deg: [0, 0, 30], state_parts: {tcp: [position, quaternion_wxyz]},"
        " action_parts: {a: none, b: [displacement, none]}}\n"
    )
    augment = load_config("mine", "augment.state_parts.joint_pos=none", config_path=tmp_path).augment
    # a mapping in a file takes the place of the shipped one, a word with a dot adds to it
    assert dict(augment.state_parts) == {"tcp": ["position", "quaternion_wxyz"], "joint_pos": "none"}
    assert dict(augment.action_parts) == {"a": "none", "b": ["displacement", "none"]}
    assert part_names("displacement, none") == part_names(["displacement", "none"]) == ["displacement", "none"]


def test_an_unknown_key_in_a_file_names_file_and_key(tmp_path):
    (tmp_path / "mine.yaml").write_text("sede: 5\n")
    with pytest.raises(UserError, match=r"mine.yaml.*sede.*Did you mean seed"):
        load_config("mine", config_path=tmp_path)


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean quickstart"):
        load_config("quikstart")
    with pytest.raises(UserError, match="no such folder"):
        load_config("quickstart", config_path=tmp_path / "absent")


def test_what_a_run_writes_is_what_it_reads(tmp_path):
    from omegaconf import OmegaConf

    cfg = load_config("quickstart", "domains={a: 1, b: 2}", "seed=3", "augment.action_parts={a: none, b: [none]}")
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    assert from_file(tmp_path / "config.yaml") == cfg


def test_domains_in_every_form():
    assert domain_names("a, b") == domain_names(["a", "b"]) == domain_names({"a": 1, "b": 2}) == ["a", "b"]


@pytest.mark.parametrize("schema", [Config, CollectConfig, EvaluateConfig])
def test_help_has_a_line_for_every_key(schema):
    for width in (40, 80, 400):
        lines = describe_keys(schema, width=width).splitlines()
        assert [line.split("=")[0].strip() for line in lines if line[2] != " "] == list(leaves_of(schema))
        # what is typed is in one piece, however long
        assert max(len(line) for line in lines if "={" not in line) <= 110
    told = " ".join(describe_keys(schema, width=80).split())
    for dotted, (_, leaf) in leaves_of(schema).items():
        assert " ".join(leaf.metadata["doc"].split()) in told, dotted


@pytest.mark.parametrize("word", ["optimizer.lr=nan", "dataset.val_ratio=nan", "augment.cloud_jitter_m=inf"])
def test_numbers_that_are_none_are_refused(word):
    with pytest.raises(UserError, match="takes a finite number"):
        load_config("quickstart", word)


def test_a_crop_box_has_its_lower_corner_first():
    with pytest.raises(UserError, match="the lower corner comes first"):
        load_config("quickstart", "dataset.crop_box=[1,1,1,0,0,0]")


def test_threads_read_configurations_beside_one_another():
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: load_config("quickstart", f"seed={seed}").seed, range(40)))
    assert found == list(range(40))

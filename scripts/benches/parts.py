"""What `bench.py all` is made of: every figure of README.md and RESULTS.md, by the commands that give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SIZES = ("tiny", "small", "full")
SHORT = {
    "tiny": "words=[policy.width=16,policy.num_heads=2,dataset.num_points=16,train.total_iters=2]",
    "small": "words=[train.total_epochs=3]",
}
# of RESULTS.md
THREE = "button-press-topdown,door-open,coffee-button"
TWELVE = (
    "button-press-topdown,door-open,drawer-open,faucet-open,basketball,box-close,hammer,peg-insert-side,assembly,"
    "pick-place,shelf-place,disassemble"
)
SEVEN = "button-press-topdown,door-open,drawer-open,faucet-open,basketball,peg-insert-side,assembly"
# older tables were measured before the quickstart told clouds from the hand
RECORDED = "policy.cloud_origin=null"
MICROWAVE = "ur5_close_microwave.001"
CLOSED = f"{{here}}/models/{MICROWAVE}/exp1"
BOWL = "ur5_put_bowl_in_microwave_and_close"
KITCHENS = f"{{here}}/models/{BOWL}.001+{BOWL}.002"


@dataclass(frozen=True)
class Part:
    """One section of the report.

    Attributes:
        about: what is measured.
        commands: by size, the words behind `python` of each; {here} is the part's own folder, {data} that of its
            demonstrations: another part may have others of the same task. A size that is not there leaves the part out.
    """

    about: str
    commands: Mapping[str, list[str]] = field(default_factory=dict)


def _bench(about: str, name: str, *, every: str = "", **words: str) -> Part:
    """One command of bench.py; `every` are the words of all sizes."""
    commands = {size: f"scripts/bench.py {name} {every} {said}" for size, said in words.items()}
    return Part(about, {size: [" ".join(command.split())] for size, command in commands.items()})


OF_SUCCESS = "dataset_path={data} output_dir={here}"
PARTS = {
    "engine": _bench(
        "our engine against a bare torch loop, by ZeRO stage", "engine",
        tiny="num_points=16 batch_size=2 block=1 rounds=2 stages=[0]", small="rounds=4", full="",
    ),
    "engine_ranks": _bench(
        "the same on two ranks, against DDP", "engine", every="ranks=2",
        tiny="num_points=16 batch_size=2 block=1 rounds=2 stages=[1]", small="rounds=4", full="",
    ),
    "loader": _bench(
        "batches a second, against a bare gather and a sample-by-sample reader", "loader",
        tiny="kind=pointcloud episodes=2 length=20 batch_size=8 rounds=2 sample_rounds=1",
        small="episodes=20 rounds=8 sample_rounds=1", full="",
    ),
    "bigstore": _bench(
        "a store larger than the memory a process may have", "bigstore",
        tiny="gigabytes=0.1 limit_gb=8 steps=10 batch_size=4", small="gigabytes=3 steps=100", full="",
    ),
    "features": _bench(
        "an epoch with a frozen backbone, with and without the cache of what it gives", "features",
        tiny="episodes=1 steps=4 image_size=16 epochs=2", small="episodes=2 epochs=3", full="",
    ),
    "policy": _bench(
        "speed and size of every head and stem", "policy",
        tiny="heads=regression stems=none rounds=2 batch_size=2", small="rounds=3", full="rounds=6",
    ),
    "rollout": _bench(
        "steps a second of Meta-World with our cloud, against the stock way", "rollout",
        tiny="num_points=16 image_size=16 stock_sizes=[16] block=2 rounds=2", small="rounds=4", full="rounds=6 block=5",
    ),
    "evaluation": _bench(
        "evaluated steps a second, by processes and environments stepped together", "evaluation", every=OF_SUCCESS,
        tiny="simulator=planar task=detour episodes=2 max_steps=4 procs=[1] batches=[1] rounds=1",
        small="episodes=4 max_steps=50 rounds=1", full="",
    ),
    "inspect": _bench(
        "frames a second of `ppt.inspect` in a real browser", "inspect", small="steps=200 points=1024", full="",
    ),
    "compare": _bench(
        "false alarms and length of comparisons that may be looked at after every goal", "compare",
        every="output_dir={here}", tiny="comparisons=4 goals=10", small="comparisons=200", full="",
    ),
    "plan": Part(
        "goals that an evaluation needs",
        dict.fromkeys(SIZES, ["-c 'import ppt_kit as ppt; print(ppt.plan_evaluation(effect=0.1, rate=0.7))'"]),
    ),
    "planar": _bench(
        "demonstrations that go round an obstacle on either side, by head", "planar",
        every=f"{OF_SUCCESS} figure={{here}}/planar.png", tiny=f"heads=[regression] demos=4 episodes=2 {SHORT['tiny']}",
        small=f"heads=[regression,flow] demos=20 episodes=20 {SHORT['small']}", full="",
    ),
    "success": _bench(
        "success by task and head, ten demonstrations a task", "success", every=OF_SUCCESS,
        tiny=f"simulator=planar tasks=[detour] demos=2 episodes=2 {SHORT['tiny']}",
        small=f"tasks=[button-press-topdown] episodes=5 {SHORT['small']}",
        full=f"heads=all tasks={THREE} words=[{RECORDED}]",
    ),
    "success_longer": _bench(
        "what learns slower", "success", every=OF_SUCCESS,
        full=f"heads=[cvae,meanflow,mixture] tasks=[{THREE}] words=[{RECORDED},train.total_epochs=100]",
    ),
    "success_pictures": _bench(
        "from colour and from depth", "success", every=OF_SUCCESS,
        full="modalities=[state+rgb,state+depth] words=[train.total_epochs=100]",
    ),
    "published": _bench(
        "twelve tasks beside published figures", "success", every=OF_SUCCESS,
        full=f"tasks=[{TWELVE}] seeds=[0] checkpoints=6",
    ),
    "hand": _bench(
        "clouds told from the hand", "success", every=OF_SUCCESS, full=f"tasks=[{SEVEN}]",
    ),
    "stems": _bench(
        "stems of clouds where a small object tells what to do", "success", every=OF_SUCCESS,
        full="tasks=[basketball,peg-insert-side,shelf-place,assembly,box-close] stems=[points,pointnext,dp3,patches]",
    ),
    "language": _bench(
        "one policy for several tasks, told which", "language", every=OF_SUCCESS,
        small=f"tasks=[button-press-topdown,door-open] episodes=3 {SHORT['small']}", full=f"words=[{RECORDED}]",
    ),
    "microwave": Part(
        "closing a microwave from depth, and with the depth zeroed",
        {
            "full": [
                f"scripts/collect_demos.py simulator=ur5 task=ur5_close_microwave domain={MICROWAVE} episodes=25"
                " save_images=true image_size=96 dataset_path={data}",
                f"scripts/train.py --config-name=config_ddp_depth_ur5_microwave domains={MICROWAVE} batch_size=32"
                " train.total_epochs=16 suffix=exp1 train.resume=auto dataset_path={data} output_dir={here}/models",
                f"scripts/eval_sim.py train.pretrained_dir={CLOSED} controls=[blind]",
            ]
        },
    ),
    "bowl": Part(
        "a bowl into the microwave, from depth and from clouds",
        {
            "full": [
                *(
                    f"scripts/collect_demos.py simulator=ur5 task={BOWL} options.variation={kitchen}"
                    f" domain={BOWL}.00{kitchen} episodes=50 save_images=depth image_size=96 num_points=512"
                    " dataset_path={data}"
                    for kitchen in (1, 2)
                ),
                *(
                    f"scripts/train.py --config-name=config_ddp_{seen}_ur5_microwave train.total_epochs={epochs}"
                    f" suffix={seen} train.resume=auto dataset_path={{data}} output_dir={{here}}/models"
                    for seen, epochs in (("depth", 14), ("cloud", 12))
                ),
                *(
                    f"scripts/eval_sim.py train.pretrained_dir={KITCHENS}/{seen} episodes=25 controls=[blind]"
                    for seen in ("depth", "cloud")
                ),
            ]
        },
    ),
    "pusht": Part(
        "PushT from a scripted pusher",
        {
            "full": [
                "scripts/collect_demos.py simulator=gymnasium task=gym_pusht/PushT-v0 episodes=120"
                " options.obs_type=environment_state_agent_pos dataset_path={data}",
                "scripts/train.py --config-name=pusht suffix=flow train.resume=auto dataset_path={data}"
                " output_dir={here}/models",
                "scripts/eval_sim.py train.pretrained_dir={here}/models/gym_pusht-PushT-v0/flow episodes=50"
                " execute_steps=16 num_steps=1 controls=[hold,blind]",
            ]
        },
    ),
    "experts": Part(
        "experts of the kitchens over a hundred seeds, and of Meta-World's tasks",
        {
            "full": [
                "-m pytest -m long tests/test_ur5.py -k hundred_seeds -rA",
                "-c 'import ppt_kit as ppt; print(ppt.tasks().to_string())'",
            ]
        },
    ),
    "quickstart": Part(
        "what `make quickstart` reaches, and how long it takes",
        {"full": ["scripts/quickstart.py dataset_path={data} output_dir={here}/models"]},
    ),
}  # fmt: skip

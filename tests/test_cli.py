import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from isometry import cli, console
from isometry.__main__ import main
from isometry.compare.comparison import Comparison
from isometry.plans import Plan
from isometry.profile import Profile
from isometry.targets import find

SOURCE = """
from torch import nn

def build(depth: int = 3, width: int = 16):
    layers = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))

def zero(model):
    for parameter in model.parameters():
        nn.init.zeros_(parameter)

def phi(x):
    return x.clamp(min=0)

def jumps(x):
    return x + (x > 0)

def broken(model):
    raise RuntimeError("no luck")

class Start:
    def __init__(self, *, gain=1.0):
        pass

    def __call__(self, model):
        pass

def no_model():
    return "weights"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "300")
    path = tmp_path / "model_for_cli.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop("model_for_cli", None)


def ok(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


def error_line(capsys, *arguments):
    text = refused(capsys, *arguments)
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def test_version_and_help(capsys):
    assert ok(capsys, "--version").startswith("isometry ")
    page = ok(capsys, "--help")
    assert all(command in page for command in ("gain", "measure", "compare"))
    assert "isometry compare --demo" in page


def test_gain_prints_a_table(capsys, file):
    out = ok(capsys, "gain", "silu", "tanh", f"{file}:phi")
    assert "1.67653" in out
    assert "1.66667" in out
    assert "1.41421" in out
    assert "tanh: torch's gain, 1.66667, is 1.047 times the exact one" in out


def test_gain_of_one_direction_is_one_line_each(capsys):
    out = ok(capsys, "gain", "relu", "tanh", "--direction", "backward")
    assert [line.split()[0] for line in out.splitlines()] == ["relu", "tanh"]
    assert float(out.splitlines()[1].split()[1]) == pytest.approx(1.467414, abs=1e-6)


def test_gain_takes_gating_mean_and_std(capsys):
    options = ("--direction", "backward", "--mean", "0.5", "--std", "2")
    plain = float(ok(capsys, "gain", "silu", *options).split()[1])
    gated = float(ok(capsys, "gain", "silu", "--gated", *options).split()[1])
    from isometry import gain

    assert plain == pytest.approx(gain("silu", direction="backward", mean=0.5, std=2.0), rel=1e-8)
    assert gated == pytest.approx(gain("silu", direction="backward", mean=0.5, std=2.0, gated=True), rel=1e-8)


def test_gain_writes_json_to_the_screen_or_to_a_file(capsys, tmp_path):
    on_screen = json.loads(ok(capsys, "gain", "silu", "gelu", "--json"))
    assert list(on_screen) == ["silu", "gelu"]
    path = tmp_path / "new" / "gains.json"
    table = ok(capsys, "gain", "--json", path, "silu", "gelu")
    assert "forward gain" in table
    assert json.loads(path.read_text()) == on_screen


def test_json_takes_a_dash_for_the_standard_output(capsys):
    assert json.loads(ok(capsys, "gain", "relu", "--json", "-")) == json.loads(
        ok(capsys, "gain", "relu", "--json")
    )


def test_gain_of_one_direction_as_json(capsys):
    found = json.loads(ok(capsys, "gain", "relu", "silu", "--direction", "backward", "--json"))
    assert found == {"relu": pytest.approx(2**0.5), "silu": pytest.approx(1.62332, abs=1e-5)}


def test_more_activations_than_a_screen_is_wide_make_more_tables(capsys):
    out = ok(capsys, "gain", "relu", "gelu", "silu", "tanh", "elu", "mish", "selu")
    assert out.count("\nforward gain  ") == 2


def test_measure_shows_every_module_and_keeps_the_profile(capsys, file, tmp_path):
    path, picture = tmp_path / "profile.json", tmp_path / "signal.png"
    out = ok(
        capsys, "measure", f"{file}:build", "-i", "32x64", "-a", "depth=4", "--json", path, "--plot", picture
    )
    profile = Profile.load(path)
    assert [row.kind for row in profile.leaves()].count("Linear") == 4
    assert "Sequential" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (
        Profile.from_json(ok(capsys, "measure", f"{file}:build", "-i", "32x64", "-a", "depth=4", "--json"))
        == profile
    )


def test_measure_after_an_initialisation(capsys, file):
    def rms(*options):
        text = ok(
            capsys, "measure", f"{file}:build", "-i", "256x64", "--json", "--arg", "width=128", *options
        )
        return Profile.from_json(text)["0"].forward.rms

    assert rms() == pytest.approx(3**-0.5, rel=0.1)
    assert rms("--init", "standard_normal") == pytest.approx(8, rel=0.1)
    assert rms("--init", "kaiming") == pytest.approx(2**0.5, rel=0.1)
    assert rms("--init", "kaiming", "--activation", "linear") == pytest.approx(1, rel=0.1)
    assert rms("--init", "auto") == pytest.approx(1, rel=0.1)
    assert rms("--init", f"{file}:zero") == 0
    assert rms("--seed", "1") != rms("--seed", "2")


@pytest.mark.parametrize("start", ["broken", "Start"])
def test_measure_says_which_start_failed(capsys, file, start):
    line = error_line(capsys, "measure", f"{file}:build", "-i", "8x64", "--init", f"{file}:{start}")
    assert start in line


def test_a_picture_of_an_unknown_format_is_refused(capsys, file, tmp_path):
    assert main(["measure", f"{file}:build", "-i", "8x64", "--plot", str(tmp_path / "signal.xyz")]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert ".xyz" in message


def test_measure_chooses_its_rows(capsys, file):
    assert "Sequential" not in ok(capsys, "measure", f"{file}:build", "-i", "8x64", "--leaves")
    assert "Linear" not in ok(capsys, "measure", f"{file}:build", "-i", "8x64", "--depth", "0")
    assert "0.weight" in ok(capsys, "measure", f"{file}:build", "-i", "8x64", "--parameters")


def test_compare_prints_a_table_a_sentence_each_and_writes_files(capsys, file, tmp_path):
    out = ok(
        capsys, "compare", f"{file}:build", "--init", "torch", "--init", f"{file}:zero", "--steps", 4,
        "--lr", 0.1, "--lr", 0.2, "--seed", 1, "--seed", 2, "--batch-size", 32,
        "--optimizer", "adam", "--threshold", 0.5, "--arg", "depth=4",
        "--out", tmp_path / "out", "--json", tmp_path / "own.json",
    )  # fmt: skip
    found = Comparison.load(tmp_path / "out" / "comparison.json")
    assert found.to_json() == Comparison.load(tmp_path / "own.json").to_json()
    assert [entry.name for entry in found] == ["torch", "zero"]
    assert {(run.lr, run.seed) for run in found["torch"].runs} == {(0.1, 1), (0.2, 1), (0.1, 2), (0.2, 2)}
    assert len(found["torch"].run.losses) == 4
    assert found.threshold == 0.5
    assert found.title == "model_for_cli.py:build"
    assert len(found["torch"].profile.leaves()) == 7
    assert found["torch"].profile["0"].shape[0] == 32
    assert "torch: It " in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "signal.png",
        "training.png",
        "report.html",
        "comparison.json",
    }


def test_compare_takes_several_starts_and_recipes_at_once(capsys, file):
    inits = "torch, auto,recipe:lecun"
    more = ["--init", "kaiming", "--inits", inits, "--steps", 1, "--json"]
    found = Comparison.from_json(ok(capsys, "compare", f"{file}:build", *more))
    assert [entry.name for entry in found] == ["kaiming", "torch", "auto", "recipe:lecun"]


def test_compare_leaves_json_alone_on_the_standard_output(capsys, file):
    assert main(["compare", f"{file}:build", "--init", "torch", "--steps", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert Comparison.from_json(captured.out)["torch"].run.losses
    assert "torch: It " in captured.err


def test_the_demo_is_compared_by_activation(capsys, tmp_path):
    options = ("--arg", "depth=4", "--arg", "width=16", "--steps", 2, "--lr", 0.01, "--data", "digits32")
    out = ok(
        capsys, "compare", "--demo", "--activation", "gelu", "--arg", "inputs=1024", *options,
        "--out", tmp_path, "--json", tmp_path / "all.json",
    )  # fmt: skip
    assert "4 plain gelu layers on digits32" in out
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["gelu"]
    found = Comparison.load(tmp_path / "gelu" / "comparison.json")
    assert json.loads((tmp_path / "all.json").read_text())["gelu"] == json.loads(found.to_json())
    assert len(found) == 7


def test_errors_are_one_line_with_the_nearest_name(capsys, file):
    assert "did you mean 'silu'" in error_line(capsys, "gain", "sillu")
    assert "did you mean 'model_for_cli.py'" in error_line(
        capsys, "measure", f"{file.parent}/model_for_clu.py:build", "-i", "2x64"
    )
    assert "did you mean 'build'" in error_line(capsys, "measure", f"{file}:bulld", "-i", "2x64")
    assert "returned a str" in error_line(capsys, "measure", f"{file}:no_model", "-i", "2x64")
    assert "no argument 'deep'" in error_line(
        capsys, "measure", f"{file}:build", "-i", "2x64", "-a", "deep=3"
    )
    assert "32x1024" in error_line(capsys, "measure", f"{file}:build", "-i", "2by64")
    assert "did you mean 'kaiming'" in error_line(capsys, "compare", f"{file}:build", "--init", "kaimin")
    assert "did you mean 'digits'" in error_line(capsys, "compare", f"{file}:build", "--data", "digit")
    assert "optimizer" in error_line(capsys, "compare", f"{file}:build", "--optimizer", "sdg")
    assert "direction" in error_line(capsys, "gain", "relu", "--direction", "sideways")
    assert "relu, tanh, gelu" in error_line(capsys, "compare", "--demo", "--activation", "swish")


def test_compare_wants_a_target_or_the_demo(capsys, file):
    assert "--demo" in error_line(capsys, "compare")
    assert "--demo" in error_line(capsys, "compare", "--demo", f"{file}:build")


def test_wrong_usage_ends_with_code_2(capsys):
    assert "--inputs" in refused(capsys, "measure", "model.py:build")
    assert "No such" in refused(capsys, "gain", "relu", "--no-such-option")
    assert "No such command" in refused(capsys, "gian")


def test_a_warning_of_the_package_is_one_line(capsys, file):
    assert main(["gain", f"{file}:jumps", "--direction", "backward"]) == 0
    captured = capsys.readouterr()
    assert float(captured.out.split()[1]) == pytest.approx(1, rel=1e-8)
    assert captured.err.startswith("warning: ")
    assert captured.err.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "isometry.cli" or name.partition(".")[0] == "typer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("isometry.cli")
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--version"]) == 2
    assert "pip install 'isometry[cli]'" in capsys.readouterr().err


def test_missing_matplotlib_is_said_before_the_work(monkeypatch, capsys, file, tmp_path):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "compare", None)
    assert "isometry[plots]" in error_line(capsys, "compare", f"{file}:build", "--out", tmp_path)
    assert "isometry[plots]" in error_line(
        capsys, "measure", f"{file}:build", "-i", "2x64", "--plot", tmp_path / "x.png"
    )


def test_a_file_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    assert main(["gain", "relu", "--json", str(tmp_path / "taken" / "gains.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_weights_that_cannot_be_written_are_one_line(capsys, file, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, no directory")
    assert main(["init", f"{file}:build", "-i", "4x64", "-o", str(blocked / "w.pt")]) == 2
    err = capsys.readouterr().err
    assert "--output cannot be written" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["seed", "inputs", "overrides"])
def test_arguments_of_the_plan_are_no_options_of_a_recipe(capsys, file, name):
    assert main(["init", f"{file}:build", "-i", "4x64", "--dry-run", "--option", f"{name}=3"]) == 2
    assert f"and '{name}' is none" in capsys.readouterr().err


def test_python_m_isometry_runs():
    command = [sys.executable, "-m", "isometry", "gain", "relu", "--direction", "forward"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "relu 1.41421356\n"


def test_importing_the_package_imports_no_extra():
    extras = ("typer", "rich", "matplotlib", "sklearn")
    code = f"import isometry, sys; print([name for name in {extras} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_compare_leaves_the_global_random_state_alone(capsys, file):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ok(capsys, "compare", f"{file}:build", "--init", "torch", "--steps", 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_command_and_option_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        _, heading, rest = page.partition(f"\n## isometry {name}\n")
        assert heading, f"docs/cli.md has no section for {name}"
        section = rest.partition("\n## ")[0]
        for parameter in command.params:
            for spelled in parameter.opts if parameter.opts[0].startswith("-") else [parameter.name.upper()]:
                assert f"`{spelled}" in section, f"{name} {spelled} is not in docs/cli.md"


def test_predict_prints_and_writes_a_profile(capsys, file, tmp_path):
    printed = ok(capsys, "predict", f"{file}:build", "-i", "8x64", "--json", tmp_path / "p.json")
    assert "Predicted signal" in printed
    assert Profile.load(tmp_path / "p.json").source == "predicted"


def test_audit_sets_prediction_beside_measurement(capsys, file, tmp_path):
    printed = ok(capsys, "audit", f"{file}:build", "-i", "64x64", "--draws", 2, "--json", tmp_path / "a.json")
    assert "figures compared over 2 draws" in printed
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {row["side"] for row in rows} == {"forward", "backward"}


def test_diagnose_says_what_is_wrong_and_exits_with_1(capsys, file, tmp_path):
    target = f"{file}:build"
    assert (
        main(["diagnose", target, "-i", "64x64", "--arg", "depth=40", "--json", str(tmp_path / "d.json")])
        == 1
    )
    printed = capsys.readouterr().out
    assert "get no gradient" in printed
    assert "torch's default" in printed
    assert "Remedy: isometry.init_(model, inputs)" in printed
    assert len(json.loads((tmp_path / "d.json").read_text())["faults"]) == 2


def test_diagnose_is_content_with_a_healthy_model(capsys, file):
    assert "Nothing is wrong." in ok(capsys, "diagnose", f"{file}:build", "-i", "64x64")


def test_report_writes_a_page(capsys, file, tmp_path):
    page = tmp_path / "new" / "page.html"
    assert "wrote" in ok(capsys, "report", f"{file}:build", "-i", "64x64", "--out", page)
    text = page.read_text(encoding="utf-8")
    for heading in ("The signal at the start", "What recipe auto would write", "Before and after"):
        assert f"<h2>{heading}</h2>" in text
    assert "What is wrong" not in text


def test_report_says_first_what_is_wrong(capsys, file, tmp_path):
    page = tmp_path / "page.html"
    ok(capsys, "report", f"{file}:build", "-i", "64x64", "--arg", "depth=40", "--out", page)
    text = page.read_text(encoding="utf-8")
    assert "get no gradient" in text.partition("The signal at the start")[0]


def test_scaling_names_the_steps_that_depend_on_width(capsys, file):
    printed = ok(capsys, "scaling", f"{file}:build", "-i", "8x64", "--over", "width=256,512", "--signals")
    assert "2.weight: its first Adam step's effect grows as width^1.0" in printed
    assert "scale its learning rate by width^-1.0" in printed


def test_scaling_says_how_over_is_written(capsys, file):
    assert "key=N,N" in error_line(capsys, "scaling", f"{file}:build", "-i", "8x64", "--over", "width")


def test_init_writes_weights_that_its_plan_draws(capsys, file, tmp_path):
    weights, record = tmp_path / "model.safetensors", tmp_path / "plan.json"
    ok(capsys, "init", f"{file}:build", "-i", "16x64", "--seed", "3", "-o", weights, "--json", record)
    from safetensors.torch import load_file

    plan = Plan.load(record)
    assert plan.recipe == "auto"
    model = find(f"{file}:build")()
    plan.apply_(model, seed=3)
    loaded = load_file(weights)
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_init_as_a_dry_run_writes_nothing(capsys, file, tmp_path):
    out = ok(capsys, "init", f"{file}:build", "-i", "16x64", "--dry-run", "--recipe", "lecun")
    assert "recipe lecun" in out
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--output FILE"),
        (["-o", "weights.npz"], ".safetensors, .pt or .pth"),
        (["--dry-run", "--recipe", "kaimng"], "did you mean 'kaiming'?"),
        (["--dry-run", "--option", "gain=2"], "has no option 'gain'"),
        (["--dry-run", "--objective", "sideways"], "objective must be one of"),
        (["--dry-run", "--distribution", "cauchy"], "distribution must be one of"),
    ],
)
def test_init_says_what_is_wrong(capsys, file, more, words):
    assert main(["init", f"{file}:build", "-i", "16x64", *more]) == 2
    assert words in capsys.readouterr().err


def test_recipes_are_listed(capsys, tmp_path):
    out = ok(capsys, "recipes", "--json", tmp_path / "recipes.json")
    names = [row["name"] for row in json.loads((tmp_path / "recipes.json").read_text())["recipes"]]
    assert "auto" in names
    assert all(name in out for name in names)


def test_audit_shows_before_and_after(capsys, file):
    out = ok(capsys, "audit", f"{file}:build", "-i", "16x64", "--fix")
    assert "After init_" in out


def test_several_inputs_by_repetition_or_in_one(capsys, tmp_path):
    path = tmp_path / "two_inputs.py"
    path.write_text(
        "from torch import nn\n\n\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words, self.out = nn.Embedding(9, 16), nn.Linear(16, 3)\n\n"
        "    def forward(self, x, ids):\n"
        "        return self.out(x + self.words(ids))\n"
    )
    once = ok(capsys, "predict", f"{path}:Two", "-i", "4x16, 4:int64<9", "--json")
    assert once == ok(capsys, "predict", f"{path}:Two", "-i", "4x16", "-i", "4:int64<9", "--json")
    for command in ("measure", "audit"):
        assert "words" in ok(capsys, command, f"{path}:Two", "-i", "4x16", "--inputs", "ids=4:int64<9")
    assert "words.weight" in ok(capsys, "init", f"{path}:Two", "-i", "4x16", "-i", "4:int64<9", "--dry-run")

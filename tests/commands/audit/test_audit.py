"""``stableopt audit`` from its command line, on real files."""

from __future__ import annotations

import copy
import json
import math
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from stableopt import functional
from stableopt.commands import command_line as cli
from stableopt.commands.audit.checkpoint import NamedTensor
from stableopt.commands.audit.measure import measure_weight
from stableopt.health.spectra.tiers import TIERS
from stableopt.types import Standing


class Touch:
    """What a hostile file holds: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def mlp(gaussian):
    return {
        "0.weight": gaussian(64, 32),
        "0.bias": torch.zeros(64),
        "2.weight": gaussian(64, 64),
        "4.weight": gaussian(10, 64),
    }


# What is in a file


def test_a_healthy_state_dict(audit, gaussian):
    result = audit(mlp(gaussian))

    assert result.exit_code == 0, result.output
    assert "HEALTHY: 2 of 3 weights" in result.stdout
    assert "1 vectors and scalars: all finite" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_every_suffix(audit, gaussian, suffix):
    assert audit({"w": gaussian(16, 16)}, suffix=suffix).exit_code == 0


def test_an_old_file(audit, gaussian, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"w": gaussian(32, 32)}, path, _use_new_zipfile_serialization=False)

    assert audit(path).exit_code == 0


def test_a_nested_trainer_checkpoint(weights, gaussian):
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16))
    adamw = torch.optim.AdamW(model.parameters())
    model(gaussian(4, 32)).sum().backward()
    adamw.step()
    content = {
        "epoch": 3,
        "name": "run",
        "model": {"net": model.state_dict()},
        "extra": [gaussian(16, 16), (gaussian(16, 16),)],
        "optimizer_states": [adamw.state_dict()],
        "other": copy.deepcopy(adamw.state_dict()),
        "state": {0: {"exp_avg": gaussian(32, 32)}},
        "step": torch.tensor(7),
    }

    _, found, record = weights(content)

    assert set(found) == {"model.net.0.weight", "model.net.1.weight", "extra.0", "extra.1.0"}
    assert record["left_out"] == {"optimizer": 12 + 12 + 1, "integer": 1}
    assert record["finite_vectors"] == 2


def test_a_state_of_a_model_is_not_taken_for_an_optimizer(weights, gaussian):
    _, found, _ = weights({"state": {"w": gaussian(16, 16)}})

    assert set(found) == {"state.w"}


def test_an_optimizer_alone_has_no_weights(audit, gaussian):
    model = nn.Linear(8, 8)
    adamw = torch.optim.AdamW(model.parameters())
    model(gaussian(4, 8)).sum().backward()
    adamw.step()

    result = audit(adamw.state_dict())

    assert result.exit_code == 2
    assert "has only 6 tensors of optimizer state" in result.stderr


def test_safetensors(weights, gaussian, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    names = [f"h.{i}.weight" for i in (0, 10, 2)]
    save_file(
        {name: gaussian(32, 32).bfloat16() for name in names},
        path,
        metadata={"format": "pt", "head.weight": "h.2.weight"},
    )

    code, found, _ = weights(path)

    assert code == 0
    assert list(found) == ["h.0.weight", "h.2.weight", "h.10.weight"]
    assert found["h.0.weight"]["dtype"] == "bfloat16"
    assert found["h.2.weight"]["aliases"] == ["head.weight"]


def test_safetensors_is_asked_for(audit, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)

    result = audit(path)

    assert result.exit_code == 2
    assert "pip install 'stableopt[audit]'" in result.stderr


def test_tied_weights_are_measured_once(audit, weights, gaussian):
    shared = gaussian(64, 32)
    code, found, _ = weights({"wte": shared, "part": shared[:32], "head": shared})

    assert code == 0
    assert set(found) == {"wte", "part"}
    assert found["wte"]["aliases"] == ["head"]
    assert "wte (= head)" in audit({"wte": shared, "head": shared}).stdout


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("bert.embeddings.position_embeddings.weight", "learned positions: no limit applies"),
        ("transformer.wpe.weight", "learned positions: no limit applies"),
        ("lm_head.weight", "an output layer: no limit applies"),
        ("model.encoder.embed_positions.weight", "learned positions: no limit applies"),
        ("encoder.weight", None),
    ],
)
def test_neighbours_that_are_alike_are_no_danger(weights, name, exempt):
    """Learned positions of a healthy encoder: a curve through a few dimensions."""
    at = torch.linspace(0, 3, 64)[:, None]
    table = torch.cat([at.sin(), at.cos(), torch.zeros(64, 30)], dim=1)
    table += 1e-3 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    code, found, _ = weights({name: table})
    assert (found[name]["standing"] == "unjudged") == (exempt is not None)
    assert (code == 1) == (exempt is None)
    if exempt:
        assert exempt in found[name]["reason"]


def test_a_table_that_is_tied_to_the_output_is_not_judged(weights, gaussian):
    shared = gaussian(64, 1) + 1e-3 * gaussian(64, 32)
    code, found, _ = weights({"tokens.weight": shared, "lm_head.weight": shared})
    assert code == 0
    assert found["tokens.weight"]["reason"] == "an output layer: no limit applies"


def test_a_container_in_itself(weights, gaussian):
    content = {"w": gaussian(16, 16)}
    content["again"] = content
    deep = content["deep"] = []
    for _ in range(200):
        deep.append([])
        deep = deep[0]
    deep.append(gaussian(16, 16))

    _, found, _ = weights(content)

    assert len(found) == 2


# What is refused


def test_a_pickled_module_is_refused(audit, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(4, 4), path)

    result = audit(path)

    assert result.exit_code == 2
    assert f"checkpoint={str(path)!r} must hold tensors only" in result.stderr
    assert "torch.nn.modules.linear.Linear" in result.stderr
    assert "torch.save(model.state_dict(), ...)" in result.stderr


@pytest.mark.parametrize("new", [True, False])
def test_a_payload_does_not_run(audit, tmp_path, monkeypatch, new):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    torch.save({"w": torch.eye(4), "x": Touch(proof)}, path, _use_new_zipfile_serialization=new)

    result = audit(path)

    assert result.exit_code == 2
    assert "would run code of the file" in result.stderr
    assert not proof.exists()
    with torch.serialization.safe_globals([]):
        torch.load(path, weights_only=False)["x"].close()
    assert proof.exists()  # the payload works where it is let


def test_torchscript_is_refused(audit, tmp_path):
    import warnings

    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(4, 4)), path)

    result = audit(path)

    assert result.exit_code == 2
    assert "TorchScript" in result.stderr


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(audit, gaussian, tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"model{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save({"w": gaussian(64, 64)}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"hello", bytes(range(256)) * 8, b"\x80\x02}q\x00"):
        path.write_bytes(content)

        result = audit(path)

        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"Error: checkpoint={str(path)!r} cannot be read: ")
        assert "Traceback" not in result.output


def test_files_that_are_none(audit, tmp_path):
    empty, other = tmp_path / "empty.pt", tmp_path / "model.txt"
    empty.touch()
    other.write_text("hello")

    for path, words in (
        (empty, "is empty"),
        (other, "must end in one of .pt, "),
        (tmp_path / "none.pt", "must exist"),
        (tmp_path, "not a directory: give a file in it, e.g. 'empty.pt'"),
    ):
        result = audit(path)

        assert result.exit_code == 2
        assert words in result.stderr
    assert not audit.out.exists()


def test_a_file_without_tensors(audit):
    result = audit({"epoch": 3, "names": ["a", "b"]})

    assert result.exit_code == 2
    assert "has no tensor" in result.stderr


def test_a_directory_that_cannot_be_written(audit, gaussian):
    audit.out.write_text("in the way")

    result = audit({"w": gaussian(16, 16)})

    assert result.exit_code == 2
    assert result.stderr.startswith("Error: out=")


def test_every_checkpoint_has_a_directory_of_its_own(gaussian, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = {"model.pt": "model", "other.pt": "other", "b/model.pt": "model-2"}
    wanted["model.pth"] = "model-3"
    (tmp_path / "b").mkdir()
    for path in [*wanted, *reversed(wanted)]:  # the second time each finds its own again
        torch.save({path: gaussian(16, 16)}, path)
        result = CliRunner().invoke(cli.app, ["audit", path])
        assert result.exit_code == 0, result.output
        assert f"runs/audit/{wanted[path]}/audit.json" in result.stdout

    audits = tmp_path / "runs" / "audit"
    assert sorted(p.name for p in audits.iterdir()) == sorted(wanted.values())
    for path, directory in wanted.items():
        record = json.loads((audits / directory / "audit.json").read_text())
        assert (record["checkpoint"], record["weights"][0]["name"]) == (path, path)
        assert (audits / directory / "audit.png").is_file()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"checkpoint": 1}', "\udcff"])
def test_an_audit_that_cannot_be_read_is_replaced(gaussian, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": gaussian(16, 16)}, "model.pt")
    record = tmp_path / "runs" / "audit" / "model" / "audit.json"
    record.parent.mkdir(parents=True)
    record.write_text(text, errors="surrogateescape")

    assert CliRunner().invoke(cli.app, ["audit", "model.pt"]).exit_code == 0
    assert json.loads(record.read_text())["checkpoint"] == "model.pt"


# What is found


def test_nan_is_named(audit, weights, gaussian):
    content = mlp(gaussian)
    content["2.weight"][3, 5] = math.nan
    content["2.weight"][4, 5] = math.inf
    content["0.bias"][1] = -math.inf

    code, found, _ = weights(content)
    result = audit(content)

    assert code == 1
    assert "DANGER: 2 of 4 weights: 2.weight, 0.bias." in result.stdout.replace(
        "0.bias, 2.weight", "2.weight, 0.bias"
    )
    assert "2.weight: 1 NaN and 1 Inf among 4096 elements, the first at [3, 5]" in result.stdout
    assert found["2.weight"]["nonfinite"] == 2
    assert found["0.bias"]["standing"] == "danger"
    assert found["0.weight"]["standing"] == "healthy"


def test_a_collapsed_layer_is_first(audit, weights, gaussian):
    content = {f"h.{i}.weight": gaussian(64, 64) for i in range(5)}
    content["h.3.weight"] = gaussian(64, 2) @ gaussian(2, 64)

    code, found, _ = weights(content)
    lines = audit(content).stdout.splitlines()

    assert code == 1
    assert lines[2].split()[:2] == ["danger", "h.3.weight"]
    assert "h.3.weight: relative rank 0.0" in "\n".join(lines)
    assert [name for name, w in found.items() if w["standing"] != "healthy"] == ["h.3.weight"]


def test_a_warning_is_no_failure(audit, gaussian):
    tier = TIERS["relative_rank"]
    u, _, v = torch.linalg.svd(gaussian(64, 64))
    faded = u * torch.linspace(0, -6, 64).exp() @ v
    report = measure_weight(NamedTensor(name="w", tensor=faded))
    assert tier.danger < report.relative_rank < tier.warning

    result = audit({"w": faded})

    assert result.exit_code == 0
    assert "WARNING: 1 of 1 weight: w." in result.stdout


def test_values_are_those_of_functional(gaussian):
    weight = gaussian(200, 48) * torch.linspace(0.5, 2, 48)
    report = measure_weight(NamedTensor(name="w", tensor=weight), published=True)

    rows = functional.row_spectrum(weight)
    values = functional.singular_values(weight)
    assert report.spectral_norm == values[0].item()
    assert report.spectral_norm == pytest.approx(functional.spectral_norm(weight).sigma.item())
    assert report.stable_rank == pytest.approx(functional.stable_rank(weight).item(), rel=1e-9)
    assert report.effective_rank == functional.effective_rank(weight).item()
    assert report.condition_number == functional.condition_number(weight).item()
    assert report.gaussian_condition_number == functional.gaussian_condition_number(200, 48)
    sampled = rows.effective_rank.item() / functional.gaussian_effective_rank(128, 48)
    whole = report.effective_rank / functional.gaussian_effective_rank(200, 48)
    assert report.relative_rank == min(sampled, whole)
    fast = measure_weight(NamedTensor(name="w", tensor=weight), exact=False)
    assert fast.relative_rank == sampled
    assert report.kappa_p10 == rows.kappa_p10.item()
    assert report.redundancy == rows.redundancy.item()
    assert report.fiedler == rows.fiedler_value.item()
    reference = functional.gaussian_fiedler_value(128)
    assert report.relative_fiedler == rows.fiedler_value.item() / reference
    assert report.assr_fiedler == functional.assr_fiedler(weight)
    assert report.assr_condition_number == functional.assr_condition_number(weight)
    assert report.kappa_tilde == pytest.approx(functional.kappa_tilde(weight).item(), rel=1e-5)


def test_a_rank_that_fell_and_is_still_beyond_the_sample_is_seen(gaussian):
    left, _, right = torch.linalg.svd(gaussian(1024, 1024))
    weight = (left * torch.exp(-torch.arange(1024) / 100)) @ right
    exact = measure_weight(NamedTensor(name="w", tensor=weight))
    assert exact.standing is Standing.DANGER
    fast = measure_weight(NamedTensor(name="w", tensor=weight), exact=False)
    assert fast.relative_rank > exact.relative_rank


# Tensors of every kind


ODD = {
    "eye(32, dtype=float16)": lambda: torch.eye(32, dtype=torch.float16),
    "eye(32, dtype=bfloat16)": lambda: torch.eye(32, dtype=torch.bfloat16),
    "eye(32, dtype=float64)": lambda: torch.eye(32, dtype=torch.float64),
    "eye(32, dtype=complex64)": lambda: torch.eye(32, dtype=torch.complex64),
    "eye(32).to(complex32)": lambda: torch.eye(32).to(torch.complex32),
    "eye(32).to(float8_e4m3fn)": lambda: torch.eye(32).to(torch.float8_e4m3fn),
    "eye(32).to_sparse()": lambda: torch.eye(32).to_sparse(),
    "quantize_per_tensor(eye(32), 0.1, 0, qint8)": lambda: torch.quantize_per_tensor(
        torch.eye(32), 0.1, 0, torch.qint8
    ),
    "eye(32).mT[::2]": lambda: torch.eye(32).mT[::2],
    "eye(32).conj()": lambda: torch.eye(32).conj(),
    "ones(1, 1).expand(32, 32)": lambda: torch.ones(1, 1).expand(32, 32),
    "ones(32, 4, 3, 3)": lambda: torch.ones(32, 4, 3, 3),
    "ones(1, 1)": lambda: torch.ones(1, 1),
    "ones(1, 64)": lambda: torch.ones(1, 64),
    "ones(64, 1)": lambda: torch.ones(64, 1),
    "zeros(32, 32)": lambda: torch.zeros(32, 32),
    "zeros(0, 32)": lambda: torch.zeros(0, 32),
    "zeros(32, 0)": lambda: torch.zeros(32, 0),
    "zeros(0)": lambda: torch.zeros(0),
    "zeros(())": lambda: torch.zeros(()),
    "zeros(3, 0, 2, 2, 2)": lambda: torch.zeros(3, 0, 2, 2, 2),
    "full((32, 32), 1e300, dtype=float64)": lambda: torch.full(
        (32, 32), 1e300, dtype=torch.float64
    ),
    "full((32, 32), 5e-324, dtype=float64)": lambda: torch.full(
        (32, 32), 5e-324, dtype=torch.float64
    ),
    "eye(32, device=meta)": lambda: torch.eye(32, device="meta"),
    "ones(4, 4, dtype=bool)": lambda: torch.ones(4, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:torch.quantize_per_tensor")
def test_no_tensor_raises(kind, exact):
    tensor = ODD[kind]()
    report = measure_weight(NamedTensor(name="w", tensor=tensor), exact=exact, published=True)

    assert isinstance(report.standing, Standing)
    if tensor.numel() == 0:
        assert report.standing is Standing.UNDEFINED
        assert report.note == "it is empty"
    if tensor.is_meta:
        assert "meta" in report.note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.float64])
def test_dtypes_in_a_file(weights, gaussian, dtype):
    code, found, record = weights(
        {
            "w": gaussian(32, 64).to(dtype),
            "conv": gaussian(32, 4, 3, 3).to(dtype),
            "turned": gaussian(48, 32).to(dtype).mT,
            "ids": torch.arange(9).reshape(3, 3),
            "none": torch.zeros(0, 4),
        }
    )

    assert code == 0
    standings = {name: weight["standing"] for name, weight in found.items()}
    healthy = {"w": "healthy", "conv": "healthy", "turned": "healthy"}
    assert standings == {**healthy, "none": "undefined"}
    assert record["left_out"]["integer"] == 1


def test_a_sensor_that_fails_is_told(gaussian, monkeypatch):
    def fail(*_):
        raise RuntimeError("did not converge\nmore")

    monkeypatch.setattr("stableopt.sensors.condition_number.condition_number", fail)
    report = measure_weight(NamedTensor(name="w", tensor=gaussian(32, 32)))

    assert math.isnan(report.condition_number)
    assert report.standing is Standing.HEALTHY
    assert report.note == "no condition number, relative condition: did not converge"


# Options and output


def test_match(audit, weights, gaussian):
    content = mlp(gaussian)
    _, found, record = weights(content, "--match", "[02].*")

    assert set(found) == {"0.weight", "2.weight"}
    assert record["finite_vectors"] == 1

    result = audit(content, "--match", "attn.*")

    assert result.exit_code == 2
    assert "match='attn.*' must fit the name of a tensor" in result.stderr
    assert "'0.weight'" in result.stderr


def test_json_is_all_there_is(audit, gaussian):
    content = {**mlp(gaussian), "zero": torch.zeros(16, 16), "low": torch.ones(32, 32)}

    result = audit(content, "--json")
    record = json.loads(result.stdout)

    assert result.exit_code == 1
    assert not result.stderr
    assert record == json.loads((audit.out / "audit.json").read_text())
    found = {weight["name"]: weight for weight in record["weights"]}
    assert found["zero"]["relative_rank"] == "NaN"
    assert found["low"]["kappa_p10"] == "Infinity"
    assert record["standing"] == "danger"
    assert "as_published_by_assr_and_gradience" not in found["low"]


def test_without_the_exact_tier(audit, weights, gaussian):
    _, found, record = weights(mlp(gaussian), "--no-exact")

    assert not record["exact"]
    assert found["0.weight"]["condition_number"] is None
    assert found["0.weight"]["effective_rank"] is None
    assert found["0.weight"]["spectral_norm"] > 0
    assert "(--no-exact)" in audit(mlp(gaussian), "--no-exact").stdout


def test_published(audit, gaussian):
    content = mlp(gaussian)

    assert "ASSR" not in audit(content).stdout
    result = audit(content, "--published")
    (weight, *_) = json.loads((audit.out / "audit.json").read_text())["weights"]

    assert "As published by ASSR/Gradience" in result.stdout
    assert set(weight["as_published_by_assr_and_gradience"]) == {
        "assr_fiedler",
        "assr_condition_number",
        "kappa_tilde",
    }


@pytest.mark.parametrize("count", [0, 1, 70])
def test_the_picture(audit, gaussian, count):
    content = {f"h.{i}.weight": gaussian(16, 16) for i in range(count)}
    content["bias"] = torch.zeros(3)
    if count:
        content["h.0.weight"][0] = content["h.0.weight"][1]  # singular
    if count > 1:
        content["h.1.weight"][:] = 1.0
        content["h.60.$weight"] = torch.full((16, 16), math.nan)

    result = audit(content)

    assert result.exit_code == (count > 1), result.output
    assert (audit.out / "audit.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(audit.out / "audit.png") in result.stdout
    assert ("more, none worse, in audit.json" in result.stdout) == (count > 1)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_table_keeps_to_the_screen(audit, gaussian, columns):
    content = {f"transformer.block.{i}.attention.weight": gaussian(16, 16) for i in range(3)}

    lines = audit(content, columns=columns).stdout.splitlines()

    table = [line for line in lines if line.startswith(("standing", "healthy", "─"))]
    assert len(table) == 5
    assert max(map(len, table)) <= columns
    assert ("redund." in lines[0]) == (columns >= 120)
    # Folded or without what they have in common, names are whole.
    assert all(f"{i}.attention." in "\n".join(lines) for i in range(3))


def test_a_name_cannot_command_the_terminal(audit, gaussian):
    content = {"[red]fc[/red]\x1b[2J\n.w": torch.ones(32, 32), "\ud800": gaussian(16, 16)}

    result = audit(content)

    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert "DANGER: 1 of 2 weights: [red]fc[/red]\\x1b[2J\\n.w." in result.stdout


def test_matplotlib_is_asked_for(audit, gaussian, monkeypatch):
    monkeypatch.delitem(sys.modules, "stableopt.commands.audit.run", raising=False)
    monkeypatch.delitem(sys.modules, "stableopt.commands.audit.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    result = audit({"w": gaussian(16, 16)})

    assert result.exit_code == 2
    assert "pip install 'stableopt[report]'" in result.stderr


def test_odd_names_are_told_without_a_warning(audit, gaussian):
    result = audit({"层.权重": gaussian(20, 20), "x" * 5000: gaussian(20, 20)})
    assert result.exit_code == 0
    assert "层.权重" in result.stdout
    assert "…" in result.stdout
    assert len(result.stdout) < 3000

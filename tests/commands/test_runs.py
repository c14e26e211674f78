"""``report``, ``watch`` and ``compare`` from the command line: output and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import webbrowser

import pytest
from typer.testing import CliRunner

from stableopt.commands import command_line as cli
from stableopt.commands.watch import watch

from .report.conftest import event

CLOSED = {"status": "closed", "integrity": "OK", "calls": 2, "steps": 2}


@pytest.fixture
def run(tmp_path):
    """Write a run; returns its directory."""

    def make(name="run", summary=CLOSED, **last):
        where = tmp_path / name
        where.mkdir()
        records = [event(1), event(2, **last)]
        (where / "telemetry.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        (where / "summary.json").write_text(json.dumps(summary))
        return where

    return make


def invoke(*arguments, width=200):
    return CliRunner(env={"COLUMNS": str(width)}).invoke(cli.app, [str(a) for a in arguments])


def test_report(run):
    where = run()
    result = invoke("report", where)

    assert result.exit_code == 0, result.output
    assert "OK. Nothing harmful is known to remain." in result.stdout
    assert result.stdout.splitlines()[-1].split() == ["report", str(where / "report.html")]
    assert (where / "report.html").read_text().startswith("<!doctype html>")
    assert not result.stderr


def test_report_elsewhere_and_as_json(run, tmp_path):
    result = invoke("report", run(risk="danger"), "--out", tmp_path / "x.html", "--json", width=20)

    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["report"] == str(tmp_path / "x.html")
    assert (record["risk"], record["bad"]) == ("danger", True)


def test_report_opens_the_page(run, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    where = run()
    invoke("report", where, "--open")

    assert opened == [(where / "report.html").resolve().as_uri()]


@pytest.mark.parametrize(
    ("last", "code"), [({}, 0), ({"loss": "NaN"}, 1), ({"action": "stop"}, 1), ({"risk": "x"}, 0)]
)
@pytest.mark.parametrize("command", [("report",), ("watch", "--once"), ("watch",), ("compare",)])
def test_exit_codes(run, command, last, code):
    assert invoke(*command, run(**last)).exit_code == code


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "nowhere"),
        ("watch", "nowhere", "--once"),
        ("watch", "nowhere", "--wait", "0"),
        ("compare", "nowhere"),
        ("compare", ".", "nowhere"),
        ("report", ".", "--run", "3"),
        ("watch", ".", "--json"),
        ("watch", ".", "--every", "0"),
        ("report",),
        ("compare",),
        ("spam",),
        ("report", ".", "--run", "x"),
    ],
)
def test_bad_use_is_2(run, monkeypatch, arguments):
    monkeypatch.chdir(run())
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_the_message_is_one_line(tmp_path):
    result = invoke("report", tmp_path / "no")

    assert result.stderr.startswith(f"Error: run={str(tmp_path / 'no')!r} must exist")
    assert result.stderr.count("\n") == 1


def test_compare_json(run):
    result = invoke("compare", run("a"), run("b", loss="NaN"), "--json", width=20)

    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert [found["bad"] for found in record["runs"]] == [False, True]


@pytest.mark.parametrize("state", ["failed", "interrupted"])
@pytest.mark.parametrize("command", [("report",), ("watch", "--once"), ("compare",)])
def test_a_program_that_did_not_come_to_its_end(run, command, state):
    result = invoke(*command, run(summary={**CLOSED, "status": state}))

    assert result.exit_code == 1
    assert state in result.stdout.lower()


def test_compare_leaves_out_what_is_no_run(run, tmp_path):
    where = run("a")
    (tmp_path / "audit").mkdir()
    (tmp_path / "model.pt").write_text("")
    alone = invoke("compare", *sorted(tmp_path.iterdir()), "--json")
    run("b")
    result = invoke("compare", *sorted(tmp_path.iterdir()), "--json")

    said = f"Left out, as there is no run: {tmp_path / 'audit'}, {tmp_path / 'model.pt'}\n"
    for found, number in ((alone, 1), (result, 2)):
        assert (found.exit_code, found.stderr) == (0, said)
        assert len(json.loads(found.stdout)["runs"]) == number
    assert json.loads(alone.stdout)["runs"][0]["run"] == str(where / "telemetry.jsonl")


def test_compare_names_a_few_of_what_it_leaves_out(run, tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.pt").write_text("")

    result = invoke("compare", *sorted(tmp_path.iterdir()), run())
    assert result.stderr.endswith("4.pt and 4 more\n")


def test_compare_takes_a_directory_of_runs(run, tmp_path):
    run("a")
    run("b")
    result = invoke("compare", tmp_path)

    assert result.exit_code == 0
    assert str(tmp_path / "a") in result.stdout
    assert str(tmp_path / "b") in result.stdout


def test_ctrl_c_is_clean(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "_newer", interrupt)
    result = invoke("watch", run(summary={**CLOSED, "status": "running"}), "--every", "0.001")

    assert result.exit_code == 130
    assert result.stderr == "Interrupted: the run itself is not touched.\n"


def test_a_signal_ends_it(run):
    where = run(summary={**CLOSED, "status": "running"})
    command = [sys.executable, "-m", "stableopt", "watch", str(where), "--every", "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("call 2  ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors == "Interrupted: the run itself is not touched.\n"


def test_runs_can_be_looked_at_without_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert invoke("report", run()).exit_code == 0


# Completion


def complete(words, *, shell="bash"):
    """Return what the shell is offered for a line that ends in its last word."""
    env = {"_STABLEOPT_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(words)}
    env["COMP_CWORD"] = str(len(words) - 1)
    result = CliRunner(env=env).invoke(cli.app, prog_name="stableopt")
    return result.stdout.split()


def test_the_shell_completes_commands_and_options():
    assert complete(["stableopt", "re"]) == ["report"]
    assert set(complete(["stableopt", ""])) >= {"demo", "report", "watch", "audit", "compare"}
    assert "--once" in complete(["stableopt", "watch", "--o"])
    assert set(complete(["stableopt", "demo", "--inject", "n"])) == {"none", "nan-grad"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(monkeypatch, tmp_path, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    # The shell that the tests run in is not asked.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown, installed = (
        CliRunner().invoke(cli.app, [option, shell], prog_name="stableopt")
        for option in ("--show-completion", "--install-completion")
    )

    assert shown.exit_code == installed.exit_code == 0, (shown.output, installed.output)
    assert "_STABLEOPT_COMPLETE" in shown.stdout
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_STABLEOPT_COMPLETE" in path.read_text() for path in written)


def test_the_report_needs_no_extra():
    code = (
        "import stableopt.recorded, sys; "
        "sys.exit(bool({'typer', 'rich', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

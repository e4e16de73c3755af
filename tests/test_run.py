"""`plsc run script.py` runs scripts of Paddle 1.x, and otherwise runs them as plain Python does."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from ranks import ROOT, TIMEOUT, run_plsc

SITE = ROOT / "plsc" / "machine" / "site"
PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def python(*command, folder, path=(ROOT,)):
    """Runs a new Python process in `folder`."""
    environment = {**PLAIN, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip


def write(folder, text, name="script.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


SEEN = """
    import json, os, sys
    import helper
    def seen():
        return {
            "argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path, "folder": os.getcwd(),
            "data": open("data.txt").read(), "spec": repr(__spec__),
            "main": sys.modules["__main__"].__dict__ is globals(),
            "site": getattr(sys.modules.get("sitecustomize"), "__file__", None), "modules": sorted(sys.modules),
            "hook": repr(sys.excepthook), "helper": helper.__file__,
        }
    if __name__ == "__main__":
        open(sys.argv[1], "w").write(json.dumps(seen()))
"""


@pytest.mark.core
def test_a_script_sees_what_it_sees_in_plain_python(tmp_path):
    write(tmp_path, SEEN, "sub/script.py")
    write(tmp_path, "", "sub/helper.py")
    write(tmp_path, "", "data.txt")
    own = write(tmp_path, "", "site/sitecustomize.py").parent
    runs = {}
    for name, command in (("plain", ["sub/script.py"]), ("run", ["-m", "plsc", "run", "sub/script.py"])):
        for path in ((ROOT,), (ROOT, own)):
            result = python(*command, "out.json", "--flag", "-x", folder=tmp_path, path=path)
            assert result.returncode == 0, result.stderr
            runs.setdefault(name, []).append(json.loads((tmp_path / "out.json").read_text()))
            (tmp_path / "out.json").unlink()
    for plain, run in zip(runs["plain"], runs["run"]):
        extra = set(run.pop("modules")) - set(plain.pop("modules"))
        assert not {name for name in extra if name.startswith(("plsc", "paddle", "numpy"))}
        if plain["site"] is None:  # then it is ours
            plain["site"] = run["site"] if run["site"] == str(SITE / "sitecustomize.py") else None
        assert run == plain
    assert runs["plain"][1]["site"] == str(own / "sitecustomize.py")


@pytest.mark.parametrize(
    "end", ["raise ValueError('mine') from KeyError(1)", "sys.exit('goodbye')", "sys.exit(3)", "syntax error here"]
)
def test_a_script_ends_as_in_plain_python(end, tmp_path):
    write(tmp_path, f"import sys\ndef work():\n    {end}\nwork()\n")
    plain = python("script.py", folder=tmp_path)
    run = python("-m", "plsc", "run", "script.py", folder=tmp_path)
    assert plain.stderr in run.stderr
    assert run.returncode == plain.returncode


OLD = """
    import json, multiprocessing, os, queue, sys
    import paddle.fluid as fluid
    import paddle.fluid.layers as layers
    from paddle.fluid.param_attr import ParamAttr
    from paddle.fluid.layers import conv2d
    from paddle.fluid.initializer import MSRA
    import paddle
    def child(names):
        import paddle.fluid
        names.put(paddle.fluid.__name__)
    if __name__ == "__main__":
        import plsc.fluid.layers
        rank = os.environ["PADDLE_TRAINER_ID"]
        texts = []
        for line in ("import paddle.fluid.core", "from paddle.fluid.layers import lstm",
                     "import paddle.fluid.nonsense"):
            try:
                exec(line)
            except ImportError as problem:
                texts.append(str(problem))
        spawned = "plsc.fluid"
        context = multiprocessing.get_context("spawn")
        for attempt in range(2 if rank == "0" else 0):  # a process that imports Paddle 2.6 has hung on a busy machine
            names = context.Queue()
            process = context.Process(target=child, args=(names,))
            process.start()
            try:
                spawned = names.get(timeout=100)
                break
            except queue.Empty:
                spawned = "no answer"
                process.kill()
        result = {
            "same": [fluid is plsc.fluid is paddle.fluid, layers is plsc.fluid.layers, conv2d is plsc.layers.conv2d,
                     ParamAttr is paddle.ParamAttr, fluid.initializer.MSRA is MSRA,
                     fluid.__spec__.name == "plsc.fluid"],
            "texts": texts, "spawned": spawned,
            "twice": [name for name in sys.modules if name.startswith("paddle.fluid.")
                      and sys.modules[name].__name__ == name],
        }
        open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(result))
"""


@pytest.mark.core
def test_the_ranks_of_an_old_script_find_fluid(tmp_path):
    script = write(tmp_path, OLD, "old/script.py")
    process = python("-m", "plsc", "run", "--ranks", 2, script, tmp_path, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert all(result["same"]) and result["spawned"] == "plsc.fluid" and result["twice"] == []
        core, lstm, nonsense = result["texts"]
        assert "paddle.device" in core and "paddle.nn.LSTM" in lstm and "fluid.nonsense is not in plsc" in nonsense
    assert [path.name for path in script.parent.iterdir()] == ["script.py"]
    outside = python(script, tmp_path, folder=tmp_path)
    assert outside.returncode == 1 and "No module named 'paddle.fluid'" in outside.stderr


def test_a_fluid_that_is_there_is_left_alone(tmp_path):
    write(tmp_path, "", "paddle/__init__.py")
    write(tmp_path, "real = True", "paddle/fluid/__init__.py")
    write(tmp_path, "", "paddle/fluid/core.py")
    code = "import sys, paddle.fluid as f, paddle.fluid.core; print(f.real, f.core.__name__, 'plsc' in sys.modules)"
    result = python("-c", code, folder=tmp_path, path=(SITE, tmp_path))
    assert result.stdout == "True paddle.fluid.core False\n", result.stderr


def test_a_broken_sitecustomize_of_the_machine_is_not_hidden(tmp_path):
    write(tmp_path, "import not_installed_at_all", "sitecustomize.py")
    texts = [python("-c", "print('on')", folder=tmp_path, path=path) for path in ((tmp_path,), (SITE, tmp_path))]
    for result in texts:
        assert "not_installed_at_all" in result.stderr and result.stdout == texts[0].stdout


@pytest.mark.parametrize("place, words", [("folder", "is a folder, not a script"), ("absent.py", "no such script")])
def test_what_is_not_a_script_is_reported(tmp_path, place, words):
    (tmp_path / "folder").mkdir()
    process = run_plsc("run", tmp_path / place)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"plsc: error: {tmp_path / place}: {words}; name a Python script")


def test_a_script_that_fails_alone_is_reported_once(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print('the reason', file=sys.stderr); sys.exit(3)")
    process = run_plsc("run", tmp_path / "script.py")
    assert process.returncode == 3 and process.stderr.splitlines()[-1] == "the reason"
    assert process.stderr.count("the reason") == 1

import ast
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from sae_lib.errors import SettingsError
from suite import project

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^\s;#]+)(?: ; [^#]+)?(?:\s+#.*)?")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> list[tuple[str, str]]:
    lines = [
        line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")
    ]
    found = [PIN.fullmatch(line) for line in lines]
    assert all(found), (
        f"{file}: not an exact pin: {[line for line, f in zip(lines, found, strict=True) if not f]}"
    )
    return [(canonical(f[1]), f[2]) for f in found]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt", "constraints.txt"])
def test_every_requirement_is_pinned_exactly_and_without_a_local_build(file):
    assert all("+" not in v and "*" not in v for _, v in pins(file))


def test_the_lock_agrees_with_the_requirements():
    lock = {}
    for name, v in pins("constraints.txt"):
        lock.setdefault(name, set()).add(v)
    for name, v in pins("requirements.txt") + pins("requirements-dev.txt"):
        assert lock[name] == {v}, f"{name}: make constraints.txt anew (its head says how)"


def test_requirements_are_installed_as_pinned():
    assert {n: version(n).split("+")[0] for n, _ in pins("requirements.txt")} == dict(
        pins("requirements.txt")
    )


_providers = cache(packages_distributions)  # reads the records of all packages


def third_party_imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    return (
        {n.split(".")[0] for n in names}
        - set(sys.stdlib_module_names)
        - {"sae_lib", "suite", "benchmarks", "tests"}
    )


@pytest.mark.parametrize(
    "folder, files",
    [
        ("sae_lib", ["requirements.txt"]),
        ("suite", ["requirements.txt"]),
        ("benchmarks", ["requirements.txt", "requirements-dev.txt", "requirements-saelens.txt"]),
    ],
)
def test_every_third_party_import_is_a_requirement(folder, files):
    required = {name for file in files for name, _ in pins(file)}
    providers = _providers()
    for file in sorted((ROOT / folder).rglob("*.py")):
        for module in third_party_imports(file):
            names = {canonical(d) for d in providers.get(module, [module])}
            assert names & required, (
                f"{file.relative_to(ROOT)} imports {module}, which {' and '.join(files)} do not pin"
            )


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_folder_of_the_machine_it_was_made_on():
    home = str(Path.home())
    folders = [
        str(ROOT.parent) + "/",
        home + "/",
        "/ro" + "ot/",
        "/opt/" + "wheels",
        "/opt/" + "pypi",
        ".py" + "env/versions",
    ]
    pattern = re.compile(
        "|".join(
            re.escape(f) for f in folders if f not in ("//", "/tmp/", "/home/", "/workspace/")
        ).encode()
    )
    for file in tracked_files():
        hit = pattern.search(file.read_bytes())
        assert not hit, f"{file.relative_to(ROOT)} names {hit[0].decode()}"


def test_scripts_are_executable_and_parse():
    for name in ("scripts/install.sh", "scripts/chromium.sh", "runpod_setup.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
        subprocess.run(["bash", "-n", ROOT / name], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", "--severity=warning", ROOT / name], check=True)


def test_environment_yml_only_wraps_requirements():
    import yaml

    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [c.split("=")[0] for c in conda] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-c constraints.txt"]}


# The install script, run for real against a python that only writes down what pip was asked.

FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  --version) echo "Python $VERSION" ;;
  "-c import sys; sys.exit(sys.version_info < (3, 11))") [ "$VERSION" != 3.9.1 ] ;;
  "-m venv"*) mkdir -p "$VENV/bin" && cp "$0" "$VENV/bin/python" ;;
  *"show torch"*) [ -n "$HAS" ] && echo "Version: $HAS" && seq 100000 ;;
  *--no-index*) [ -n "$WHEEL" ] ;;
  *--index-url*) [ -n "$CPU_INDEX" ] ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    def run(
        version="3.12.1", has="", wheel="", cpu_index="", gpu=False, system="Linux", python="fake"
    ):
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        scripts = {
            "fake": FAKE_PYTHON,
            "uname": f"#!/bin/sh\necho {system}\n",
            "nvidia-smi": f"#!/bin/sh\n{'echo GPU 0' if gpu else 'exit 9'}\n",
        }
        for name, text in scripts.items():
            (tools / name).write_text(text)
            (tools / name).chmod(stat.S_IRWXU)
        env = dict(
            LOG=str(tmp_path / "log"),
            VERSION=version,
            HAS=has,
            WHEEL=wheel,
            CPU_INDEX=cpu_index,
            PYTHON=python,
        )
        env |= dict(VENV=str(tmp_path / "venv"), PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / "log").unlink(missing_ok=True)
        done = subprocess.run(
            [ROOT / "scripts" / "install.sh"], env=env, capture_output=True, text=True
        )
        asked = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
        return done, [a.partition("install ")[2] for a in asked if " install " in a]

    return run


def torch_pin() -> str:
    return f"torch=={dict(pins('requirements.txt'))['torch']}"


def test_install_takes_a_wheel_that_pip_is_configured_with(install):
    done, asked = install(wheel="yes")
    assert done.returncode == 0
    assert len(asked) == 3 and "--no-index" in asked[0] and asked[0].endswith(torch_pin())
    assert asked[1].endswith("-r requirements.txt -c constraints.txt")
    assert asked[2].endswith("--no-deps --no-build-isolation -e .")


def test_install_takes_the_cpu_index_where_there_is_no_wheel(install):
    done, asked = install(cpu_index="yes")
    assert done.returncode == 0 and len(asked) == 4
    assert "--index-url https://download.pytorch.org/whl/cpu" in asked[1] and asked[1].endswith(
        torch_pin()
    )


def test_install_falls_back_to_the_default_build_and_says_so(install):
    done, asked = install()
    assert done.returncode == 0 and len(asked) == 4 and "several GB" in done.stdout


@pytest.mark.parametrize("machine", [dict(gpu=True), dict(system="Darwin")])
def test_install_takes_the_default_build_with_a_gpu_or_on_macos(install, machine):
    done, asked = install(wheel="yes", cpu_index="yes", **machine)
    assert done.returncode == 0 and len(asked) == 2 and "default build" in done.stdout


def test_install_leaves_a_torch_that_fits_the_pin(install):
    assert len(install(has=f"{torch_pin()[7:]}+cu126", wheel="yes")[1]) == 2
    assert len(install(has=f"{torch_pin()[7:]}1", wheel="yes")[1]) == 3


@pytest.mark.parametrize(
    "python, version, found",
    [("fake", "3.9.1", "Python 3.9.1"), ("no-such-python", "", "not found")],
)
def test_install_says_which_python_it_needs(install, python, version, found):
    done, asked = install(python=python, version=version)
    assert done.returncode == 1 and asked == []
    assert "Python 3.11 or newer" in done.stderr and found in done.stderr


def test_make_installs_once_and_again_when_requirements_change(tmp_path):
    shutil.copy2(ROOT / "Makefile", tmp_path)
    for folder in (".venv", "scripts"):
        (tmp_path / folder).mkdir()
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    script = tmp_path / "scripts" / "install.sh"
    script.write_text("#!/bin/sh\necho installing $1\n")
    script.chmod(stat.S_IRWXU)

    def make() -> str:
        env = {"PATH": os.environ["PATH"]}  # not the MAKEFLAGS of the `make test` that runs this
        return subprocess.run(
            ["make", "install"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stdout

    assert make() == "installing requirements.txt\n"
    assert "installing" not in make()
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "installing" in make()


def test_runpod_help_and_unknown_options():
    script = ROOT / "runpod_setup.sh"
    assert (
        "--no-lab"
        in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    )
    for wrong in (["--nolab"], ["--port", "x"]):
        assert subprocess.run([script, *wrong], capture_output=True).returncode == 2


FAKE_VENV_PYTHON = """#!/bin/sh
case "$2" in
  jupyterlab)
    echo "$*" > jupyter_arguments
    for a; do
      case "$a" in --ServerApp.port=*) port=${{a#*=}} ;; --ServerApp.ip=*) ip=${{a#*=}} ;; esac
    done
    exec {python} -m http.server "$port" --bind "$ip" ;;
  ipykernel | suite) ;;
  *) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def pod_script(tmp_path):
    """runpod_setup.sh in a folder where the packages are there already; gives (output, arguments
    of JupyterLab, state folder).
    """
    (tmp_path / "home").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("runpod_setup.sh", "requirements.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    fakes = {name: "#!/bin/sh\n" for name in ("scripts/install.sh", "scripts/chromium.sh")}
    fakes[".venv/bin/python"] = FAKE_VENV_PYTHON.format(python=sys.executable)
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    state = tmp_path / "home" / ".local" / "state" / "sae_lib"

    def run(**environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "VOLUME": "/nowhere"}
        command = [tmp_path / "runpod_setup.sh", "--port", port]
        done = subprocess.run(command, env=env | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr, port, (tmp_path / "jupyter_arguments").read_text()

    yield run, state
    if (state / "jupyter.pid").exists():
        os.kill(int((state / "jupyter.pid").read_text()), signal.SIGTERM)


def test_the_newest_build_that_the_driver_allows_is_tried_first():
    function = "source <(sed -n '/^builds_for/,/^}/p' runpod_setup.sh); builds_for "
    found = {
        driver: subprocess.run(
            ["bash", "-uc", function + driver], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for driver in ("124", "126", "128", "129")
    }
    assert found == {
        "124": ["cu126", "cu128", "cu129"],
        "126": ["cu126", "cu128", "cu129"],
        "128": ["cu128", "cu126", "cu129"],
        "129": ["cu129", "cu128", "cu126"],
    }


# Has no torch until pip is asked for the build cu126: no newer one exists of this version.
ONLY_CU126 = """#!/bin/sh
case "$*" in
  *'version("torch")'*) [ -e torch_is_there ]; exit ;;
  "-m pip install"*) echo "$*" >> pip_calls
    case "$*" in *cu126*) touch torch_is_there ;; *) exit 1 ;; esac; exit ;;
esac
"""


def test_a_pod_without_torch_gets_the_newest_build_for_its_driver(pod_script, tmp_path):
    run, _ = pod_script
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(ONLY_CU126 + python.read_text())
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho '| NVIDIA-SMI 570.86  Driver 570.86  CUDA Version: 12.8 |'\n")
    smi.chmod(stat.S_IRWXU)
    said, *_ = run(PATH=f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    assert "the driver runs CUDA 12.8" in said and "took cu126" in said
    calls = (tmp_path / "pip_calls").read_text().splitlines()
    assert [re.search(r"whl/(cu\d+) torch==", call)[1] for call in calls] == ["cu128", "cu126"]


def test_runs_and_caches_lie_on_the_volume(pod_script, tmp_path):
    run, _ = pod_script
    volume = tmp_path / "volume"
    volume.mkdir()
    said, *_ = run(VOLUME=str(volume))
    runs = tmp_path / "runs"
    assert runs.is_symlink() and runs.resolve() == volume / "runs"
    assert f"Hugging Face: {volume}/huggingface" in said
    assert str(volume / "huggingface") in (tmp_path / "home" / ".bashrc").read_text()
    assert not (tmp_path / ".venv").is_symlink()


def test_the_environment_lies_on_the_containers_disk_where_the_checkout_is_on_the_volume(
    pod_script, tmp_path
):
    run, _ = pod_script
    local = tmp_path / "home" / ".local" / "share" / "sae_lib" / "venv"
    shutil.move(tmp_path / ".venv", local)
    said, *_ = run(VOLUME=str(tmp_path))
    assert (tmp_path / ".venv").resolve() == local and f"environment: {local}" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif("RUNPOD_POD_ID" in os.environ, reason="on a pod")
@pytest.mark.parametrize("pod", [False, True])
def test_jupyterlab_can_be_reached_from_elsewhere_on_a_pod_only(pod_script, pod):
    run, state = pod_script
    said, port, arguments = run(**({"RUNPOD_POD_ID": "abc123"} if pod else {}))
    assert f"--ServerApp.ip={'0.0.0.0' if pod else '127.0.0.1'}" in arguments.split()
    url = f"https://abc123-{port}.proxy.runpod.net" if pod else f"http://127.0.0.1:{port}"
    assert f"\n{url}/lab\n" in said and f"cat {state}/token" in said
    token = (state / "token").read_text()
    assert len(token) > 40 and token not in said and token not in arguments
    assert "http://" not in said or not pod


def test_the_token_is_the_users_alone_even_where_an_old_one_was_not(pod_script):
    run, state = pod_script
    state.mkdir(parents=True)
    state.chmod(0o755)
    (state / "token").write_text("old")
    (state / "token").chmod(0o644)
    with open(state / "token") as held_open:
        run()
        assert held_open.read() == "old", "who had the old file open reads the new token"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "token").stat().st_mode) == 0o600


def test_the_checkout_is_the_one_worked_in_or_the_one_this_package_is_part_of(
    tmp_path, monkeypatch
):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{project.NAME}"\n')
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project.find() == tmp_path and project.published("toy") == tmp_path / "report/toy"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    monkeypatch.setattr(project, "PACKAGE", ROOT / "suite")
    assert project.root() == ROOT
    monkeypatch.setattr(project, "PACKAGE", tmp_path / "site-packages" / "suite")
    assert project.find() is None
    with pytest.raises(SettingsError, match="not in a checkout"):
        project.root()

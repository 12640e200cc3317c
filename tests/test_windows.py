"""What Windows does not have: no module needs it to be imported, and Ctrl-C works without it.

Nothing here runs on Windows itself; a process is made to lack what Windows lacks.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from flaxvid.data.motion.build import motion_source

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROGRAM = """
import builtins, importlib, os, pkgutil, runpy, signal, sys, time

import flaxvid

signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # what started this may have blocked it
signal.signal(signal.SIGINT, signal.default_int_handler)
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
GONE = {
    os: "fork forkpty geteuid getpgid getuid killpg mkfifo pread sched_getaffinity sched_setaffinity set_blocking "
    "setsid statvfs sysconf uname wait4",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGUSR1 SIGUSR2 alarm pthread_sigmask setitimer sigwait",
}
names = [module.name for module in pkgutil.walk_packages(flaxvid.__path__, "flaxvid.")]
for name in names:  # what other packages import on this system is their own affair
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "flaxvid"]:
    del sys.modules[name]

def import_as_on_windows(name, importer=None, *rest):
    ours = (importer or {}).get("__name__", "").startswith(("flaxvid", "script "))
    if ours and name.partition(".")[0] in MODULES:
        raise ModuleNotFoundError(f"{importer['__name__']} imports {name}")
    return real_import(name, importer, *rest)

real_import, builtins.__import__ = builtins.__import__, import_as_on_windows
for module, gone in GONE.items():
    for name in gone.split():
        delattr(module, name)
for name in names:
    importlib.import_module(name)
for script in sys.argv[1:]:
    runpy.run_path(script, run_name=f"script {script}")

from flaxvid.data.workers import started_deaf
from flaxvid.train.interrupt import end_when_told

with started_deaf():
    pass
end_when_told("go on")
print(len(names), flush=True)
signal.raise_signal(signal.SIGINT)
time.sleep(60)
"""


def test_nothing_that_only_posix_has_is_needed():
    command = [sys.executable, "-c", PROGRAM, *map(str, sorted(SCRIPTS.glob("*.py")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stderr == "stopped as told (SIGINT): go on\n"
    assert done.returncode == 130
    assert int(done.stdout) > 150


def test_data_that_cannot_be_read_without_array_record_is_said_to(motion_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(OSError, match="need array_record, which is not installed and has no build for Windows"):
        motion_source(next(motion_data.rglob("dataset_info.json")).parent, "train")

"""Ctrl-C ends a command without a traceback, also before it has begun and after it has ended."""

import json
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX: run this on Linux")

#: print how SIGINT is handled once the entry point is imported, during a command, and after it
SCRIPT = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.{before})
import relu_deploy.__main__ as entry
handlers = [signal.getsignal(signal.SIGINT)]
entry.run = lambda isolated: handlers.append(signal.getsignal(signal.SIGINT)) or 0
entry.main()
handlers.append(signal.getsignal(signal.SIGINT))
names = {{signal.SIG_DFL: "ends", signal.SIG_IGN: "ignored", signal.default_int_handler: "raises"}}
print(json.dumps([names[each] for each in handlers]))
"""


@pytest.mark.parametrize(
    ("before", "handled"),
    [("default_int_handler", ["ends", "raises", "ends"]), ("SIG_IGN", ["ignored", "ignored", "ignored"])],
)
def test_ctrl_c_raises_only_where_the_command_line_can_answer_it(before, handled):
    made = subprocess.run([sys.executable, "-c", SCRIPT.format(before=before)], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == handled


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_after_the_end_of_a_command_prints_no_traceback(name):
    script = """
import os, signal, sys, time, weakref
import relu_deploy.__main__ as entry
def stop(*_):
    raise SystemExit(1)
signal.signal(signal.{name}, stop)
entry.run = lambda isolated: 0
class Late:
    pass
late = Late()
weakref.finalize(late, lambda: os.kill(os.getpid(), signal.{name}))
sys.exit(entry.main())
"""
    made = subprocess.run([sys.executable, "-c", script.replace("{name}", name)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (-getattr(signal, name), "")


def test_a_second_ctrl_c_ends_the_process_without_a_traceback(tmp_path):
    # The first one is answered; the process then waits for a thread, as for one that is inside a runtime.
    script = """
import os, signal, sys, threading, time
import relu_deploy.__main__ as entry
import relu_deploy.cli.main as main
def run(*_):
    threading.Thread(target=time.sleep, args=(20,)).start()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
main._run = run
sys.exit(entry.main())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr.readline() == "interrupted\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    assert process.stderr.read() == ""

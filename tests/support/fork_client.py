"""Be the Python process that `fork_server` forks: pass it everything a process has, forward signals, end as it ends.

`processes` writes this text into scripts whose interpreter loads no standard library (`-I -S`): one is started for each
command. This is why only built-in modules are imported.
"""

import marshal
import posix
import sys
from _signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, getsignal, signal
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket

SIGNALS = (SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2)


def run(interpreter, folder, before):
    """Run `python BEFORE ARGUMENTS` with this process's arguments and end as that one ends.

    interpreter: what runs instead when the arguments have options that the server does not know, or more files are open
    than the standard streams. folder: the server's, where `python` is a script like this one.
    """
    arguments = [*before, *sys.argv[1:]]
    is_known = arguments and (not arguments[0].startswith("-") or arguments[0] in ("-m", "-c", "-"))
    # The fourth is the folder that is listed.
    if not is_known or len(posix.listdir("/proc/self/fd")) > 4:
        posix.execv(interpreter, [interpreter, *arguments])
    request = marshal.dumps(
        {
            "executable": f"{folder}/python",
            "arguments": arguments,
            "folder": posix.getcwd(),
            "environment": dict(posix.environ),
            "ignores_sigint": getsignal(SIGINT) == SIG_IGN,
            "processors": list(posix.sched_getaffinity(0)),
        }
    )
    server = socket(AF_UNIX)
    server.connect(f"{folder}/socket")
    streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    server.sendmsg([len(request).to_bytes(4, "big")], [(SOL_SOCKET, SCM_RIGHTS, streams)])
    server.sendall(request)

    def forward(number, _):
        try:  # noqa: SIM105  # contextlib is no built-in module
            server.send(bytes([number]))
        except OSError:
            pass  # the process has ended

    for number in SIGNALS:
        if getsignal(number) != SIG_IGN:
            signal(number, forward)
    status = b""
    while len(status) < 4:
        piece = server.recv(4 - len(status))
        if not piece:
            posix.write(2, b"the fork server of the tests has ended\n")
            posix._exit(70)
        status += piece
    code = int.from_bytes(status, "big", signed=True)
    if code < 0:
        # Ended by a signal: so does this process.
        if -code in SIGNALS:
            signal(-code, SIG_DFL)
        posix.kill(posix.getpid(), -code)
    posix._exit(code)

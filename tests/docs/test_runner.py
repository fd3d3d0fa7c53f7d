"""The runner of the documentation finds what it is there to find."""

import os
import socket
import time
from pathlib import Path

import pytest
from doc_output import first_missing
from doc_pages import commands, read_page
from doc_runs import DEFAULT_PORTS, Wrong, can_run, free_port, is_free, ports_of, run_page, with_free_ports

needs_bash = pytest.mark.skipif(bool(can_run()), reason=can_run() or "bash is here")


def page_of(text):
    return read_page(Path("page.md"), text)


def fenced(language, *lines):
    return "\n".join([f"```{language}", *lines, "```", ""])


def run(text, folder, patience=60):
    page = page_of(text)
    assert page.problems == ()
    run_page(page, folder, patience)


# ---------------------------------------------------------------- what a page shows


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ("took 1.5 s", "took 12.25 s"),
        ("torch 2.13.0", "torch 2.14.1"),
        ("passed: 35 of 35 Relus", "passed: 8 of 8 Relus"),
        ("a   1,000   b", "a 12 b"),
        ("─────── 12", "─── 7"),
        ("error 1e-07", "error 3.25e-12"),
        ("sha256 … of it", "sha256 0abc of it"),
        ("plain", "\x1b[1mplain\x1b[0m"),
    ],
)
def test_numerals_widths_and_ellipses_may_differ(shown, real):
    assert first_missing([shown], f"before\n{real}\nafter") is None


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ("digits: passed", "digits: differs"),
        ("passed: 35 of 35 Relus", "passed: 34 of 35 Relus"),
        ("top1 0.99", "top1 nan"),
        ("top1 0.99", "top1 -0.99"),
        ("all good", "all good here"),
        ("all good here", "all good"),
        ("a.b", "axb"),
        ("one of 10", "two of 10"),
    ],
)
def test_words_signs_and_all_of_as_many_may_not_differ(shown, real):
    assert first_missing([shown], real) == 0


def test_the_order_of_lines_counts_and_what_is_between_them_does_not():
    assert first_missing(["a", "…", "", "c"], "a\nb\nc\n") is None
    assert first_missing(["c", "a"], "a\nb\nc\n") == 1
    assert first_missing(["a", "a"], "a\nb\n") == 1


# ---------------------------------------------------------------- how a page is written


def test_a_missing_reason_is_found_with_its_line():
    page = page_of("text\n<!-- not run -->\n" + fenced("console", "$ nvidia-smi"))
    assert page.problems == ("page.md:2: `not run` without saying what: write <!-- not run: … -->",)
    assert page_of("<!-- not run: -->\n" + fenced("console", "$ true")).problems


def test_a_reason_belongs_to_the_block_on_the_next_line():
    page = page_of("<!-- not run: needs a GPU -->\n" + fenced("console", "$ false") + fenced("python", "1"))
    assert [block.reason for block in page.blocks] == ["needs a GPU", None]
    assert page_of("<!-- not run: needs a GPU -->\n\n" + fenced("console", "$ false")).problems


def test_a_block_that_needs_a_module_runs_where_that_is():
    page = page_of(
        "<!-- needs: json -->\n" + fenced("console", "$ true") + "<!-- needs: no_such_module -->\n" + fenced("python", "1")
    )
    assert [block.reason for block in page.blocks] == [None, "no_such_module is not installed"]
    assert page_of("<!-- needs: -->\n" + fenced("python", "1")).problems


@pytest.mark.parametrize("language", ["", "sh", "bash", "text"])
@pytest.mark.parametrize("line", ["$ ls", "relu-deploy zoo"])
def test_commands_in_a_block_that_is_not_run_are_found(language, line):
    assert "page.md:1: a command that is never run" in page_of(fenced(language, line)).problems[0]
    assert page_of("<!-- not run: downloads 2 GB -->\n" + fenced(language, line)).problems == ()


def test_commands_in_an_indented_block_are_found():
    assert "page.md:4" in page_of("text\n\n    cd here\n    relu-deploy zoo\n").problems[0]
    assert page_of("- text about\n    relu-deploy and others\n").problems == ()


@pytest.mark.parametrize(
    ("language", "text"),
    [("json", '{"a": 1,}'), ("yaml", "a: [1"), ("toml", "a = "), ("python", "def f(:"), ("console", "no command")],
)
def test_blocks_that_are_not_what_they_say_are_found(language, text):
    assert "page.md:1" in page_of(fenced(language, text)).problems[0]


def test_good_blocks_of_other_languages_are_no_problem():
    text = (
        fenced("json", '{"a": 1}')
        + fenced("yaml", "a: 1", "---", "b: 2")
        + fenced("toml", "a = 1")
        + fenced("dockerfile", "FROM x")
    )
    assert page_of(text).problems == ()


def test_commands_their_output_and_their_exit_codes_are_told_apart():
    text = fenced(
        "console",
        "$ one \\",
        "    --more",
        "> end",
        "said",
        "",
        "$ two    # too many: exit 3",
        "$ relu-deploy serve m.rdb &  # here",
    )
    first, second, third = commands(page_of(text).blocks[0])
    assert (first.text, first.shown, first.line, first.code) == ("one \\\n    --more\nend", ("said", ""), 2, 0)
    assert (second.line, second.code, second.serves) == (7, 3, False)
    assert third.serves


def test_fences_in_lists_and_longer_fences_are_read():
    nested = "- text\n\n  ```python\n  if True:\n      x = 1\n  ```\n\n````\n```console\n$ no\n```\n````\n"
    page = page_of(nested)
    assert page.blocks[0].text == "if True:\n    x = 1\n"
    assert [block.language for block in page.blocks] == ["python", ""]


def test_a_servers_ports_are_known_before_it_is_started():
    serve = fenced("console", "$ relu-deploy serve m.rdb --grpc-port=9001 --metrics-port -1 &")
    assert ports_of(page_of(serve)) == [8000, 9001]
    assert ports_of(page_of("<!-- not run: no -->\n" + serve)) == []


def test_the_ports_of_a_page_without_options_are_the_ones_that_serve_has():
    from relu_deploy.cli.main import create_parser

    options = create_parser().parse_args(["serve", "m.rdb"])
    assert {name: getattr(options, f"{name}_port") for name in DEFAULT_PORTS} == DEFAULT_PORTS


def test_servers_and_what_speaks_to_them_move_to_the_same_free_ports():
    page = page_of(
        fenced(
            "console", "$ relu-deploy serve m.rdb --grpc-port 9001 &  # here", "$ curl localhost:8000/v2", "http://localhost:8000"
        )
        + fenced("python", "at = ['localhost:8000', '127.0.0.1:9001', 'localhost:8002', 'localhost:4318', '8000']")
        + fenced("json", '"localhost:8000"')
    )
    moved = with_free_ports(page)
    http, grpc, metrics = sorted(ports_of(moved), key=lambda port: moved.blocks[1].text.index(str(port)))
    assert len({http, grpc, metrics} | {8000, 9001, 8002}) == 6
    assert moved.blocks[0].text == (
        f"$ relu-deploy serve --metrics-port {metrics} --http-port {http} m.rdb --grpc-port {grpc} &  # here\n"
        f"$ curl localhost:{http}/v2\nhttp://localhost:{http}\n"
    )
    assert moved.blocks[1].text == (
        f"at = ['localhost:{http}', '127.0.0.1:{grpc}', 'localhost:{metrics}', 'localhost:4318', '8000']\n"
    )
    assert moved.blocks[2] == page.blocks[2]


def test_a_port_that_is_in_use_is_seen():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


# ---------------------------------------------------------------- running


@needs_bash
def test_python_and_commands_share_a_folder_and_keep_what_they_set(tmp_path):
    run(
        "<!-- run\nmkdir sub\nexport WORD=hello\n-->\n"
        + fenced("python", "from pathlib import Path", "Path('sub/x').write_text('7')")
        + fenced("console", "$ cd sub", "$ echo $WORD $(cat x)", "hello 7")
        + "<!-- file: sub/mine.py -->\n"
        + fenced("python", "raise SystemExit('written, not run')")
        + fenced("console", "$ cat > two <<END", "> a", "> END", "$ cat two mine.py", "a", "raise SystemExit('written, not run')")
        + fenced("python", "print(Path.cwd().name, 1.5)")
        + fenced("output", f"{tmp_path.name} 2.5"),
        tmp_path,
    )


@needs_bash
def test_commands_run_this_working_tree(tmp_path):
    import relu_deploy

    here = Path(relu_deploy.__file__).parents[1]
    run(
        fenced("console", "$ relu-deploy --version", f"relu-deploy {relu_deploy.__version__}")
        + fenced("python", "import relu_deploy", f"assert relu_deploy.__file__.startswith({str(here)!r})"),
        tmp_path,
    )


@needs_bash
def test_a_wrong_output_is_found_with_its_line(tmp_path):
    with pytest.raises(Wrong, match=r"page.md:4: shown, but not what came: 'two'"):
        run(fenced("console", "$ echo one; echo three", "one", "two"), tmp_path)
    with pytest.raises(Wrong, match=r"page.md:5: shown, but not what came: 'two'"):
        run(fenced("python", "print('one')") + fenced("output", "two"), tmp_path)


@needs_bash
@pytest.mark.parametrize(
    "line", ["false", "true  # exit 1", "exit 0", "relu-deploy inspect nosuch.rdb", "relu-deploy zoo  # exit 2"]
)
def test_a_wrong_exit_code_is_found(line, tmp_path):
    with pytest.raises(Wrong, match=r"page.md:2"):
        run(fenced("console", f"$ {line}"), tmp_path)


@needs_bash
def test_the_exit_code_that_is_named_is_right(tmp_path):
    run(fenced("console", "$ relu-deploy inspect nosuch.rdb   # exit 2", "error: …", "hint: …", "$ (exit 3) # exit 3"), tmp_path)


@needs_bash
def test_an_error_in_python_names_the_line_of_the_page(tmp_path):
    with pytest.raises(Wrong, match=r"page.md:5: ValueError: no"):
        run(fenced("python", "x = 1") + fenced("python", "raise ValueError('no')"), tmp_path)
    with pytest.raises(Wrong, match=r"page.md:2: Python ended"):
        run(fenced("python", "import os; os._exit(3)"), tmp_path)


@needs_bash
def test_what_never_ends_is_ended(tmp_path):
    started = time.monotonic()
    with pytest.raises(Wrong, match=r"page.md:2: not finished after 1 s"):
        run(fenced("console", "$ sleep 600"), tmp_path, patience=1)
    with pytest.raises(Wrong, match=r"page.md:2: not finished after 1 s"):
        run(fenced("python", "import time; time.sleep(600)"), tmp_path, patience=1)
    assert time.monotonic() - started < 60


SERVER = """import http.server, pathlib, sys
handler = type("H", (http.server.BaseHTTPRequestHandler,), {})
handler.do_GET = lambda self: (self.send_response(200), self.end_headers(), self.wfile.write(b"answer 42"))
pathlib.Path("port").write_text(sys.argv[3])
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), handler).serve_forever()
"""


@needs_bash
def test_a_server_is_waited_for_and_ended_with_the_page(tmp_path):
    port = free_port()
    (tmp_path / "server.py").write_text(SERVER)
    start = f"$ python server.py serve --http-port {port} --grpc-port -1 --metrics-port -1 &"
    ask = f"$ python -c 'import urllib.request as r; print(r.urlopen(\"http://localhost:{port}\").read().decode())'"
    run(fenced("console", start, "listening", "$ echo $! > pid", ask, "answer 41"), tmp_path)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert is_free(int((tmp_path / "port").read_text()))


@needs_bash
def test_a_server_that_ends_at_once_is_found(tmp_path):
    with pytest.raises(Wrong, match=r"page.md:2: the server does not answer on \[1\]"):
        run(fenced("console", "$ echo serve --http-port 1 --grpc-port -1 --metrics-port -1 &"), tmp_path)

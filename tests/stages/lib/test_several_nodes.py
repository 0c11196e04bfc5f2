"""Nodes that work together: what the environment may say, what they tell each other, how one ends for all."""

import socket
import threading

import pytest
from microstages import nodes as module
from microstages.errors import Stopped, TemporaryError, UserError
from microstages.nodes import Nodes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def environment(monkeypatch):
    """`environment(MASTER_ADDR="…")`: the variables of node 1 of 2, with these changed; None: left out."""

    def put(**changed):
        values = {"MICROSTAGES_NODES": "2", "MICROSTAGES_NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", **changed}
        for name in ("MICROSTAGES_NODES", "MICROSTAGES_NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        return Nodes.here("demo", True, print)

    return put


def together(*bodies, size=None, port=None):
    """Run a body for each rank, as nodes on this machine; what each returned or raised."""
    port, found = port or free_port(), [None] * len(bodies)

    def run(rank):
        try:
            with Nodes(rank, size or len(bodies), "127.0.0.1", port) as nodes:
                found[rank] = bodies[rank](nodes)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


def raising(error):
    def body(nodes):
        nodes.meet("the same")
        raise error

    return body


def working(nodes):
    """Works until another node ends, as training does."""
    ended = threading.Event()
    nodes.meet("the same")
    nodes.on_end(ended.set)
    ended.wait(60)
    nodes.check()
    return "worked on"


def test_without_the_variables_there_is_one_node(environment):
    nodes = environment(MICROSTAGES_NODES=None, MICROSTAGES_NODE_RANK=None, MASTER_ADDR=None)
    with nodes:
        assert (nodes.rank, nodes.size, nodes.several) == (0, 1, False) and nodes.exchange(3) == [3]
        nodes.meet("print")
        nodes.check()
        nodes.wait()


def test_the_number_that_azure_ml_gives_a_node_is_taken(environment):
    assert environment(MICROSTAGES_NODE_RANK=None, NODE_RANK="1").rank == 1
    assert environment().port == 29500 and environment(MASTER_PORT="7").port == 7


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"MICROSTAGES_NODE_RANK": "2"}, "there is no node 2 among 2"),
        ({"MICROSTAGES_NODE_RANK": None}, "MICROSTAGES_NODE_RANK: it is not set"),
        ({"MICROSTAGES_NODES": "two"}, "MICROSTAGES_NODES: 'two' is not a whole number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: it is not set"),
        ({"MASTER_PORT": "70000"}, "70000 is not a port"),
    ],
)
def test_an_environment_that_does_not_fit_is_the_callers_mistake(changed, words, environment):
    with pytest.raises(UserError) as error:
        environment(**changed)
    assert words in str(error.value) and error.value.exit_code == 2


def test_a_stage_for_one_node_refuses_more(environment):
    environment()
    with pytest.raises(UserError, match="merge runs on one node"):
        Nodes.here("merge", False, print)


@pytest.mark.parametrize(
    "address, why", [("nowhere.invalid", "this name does not resolve"), ("127.0.0.1", "nobody answers")]
)
def test_a_node_0_that_is_not_there_may_be_there_later(address, why, monkeypatch):
    monkeypatch.setattr(module, "COMING", 0.2)
    with pytest.raises(TemporaryError, match=f"node 0 is not reached, after 0 seconds: {why}"):
        with Nodes(1, 2, address, free_port()):
            raise AssertionError("it is not reached")


def test_a_helper_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(module, "COMING", 0.2)
    found = together(lambda nodes: nodes.meet("x"), lambda nodes: nodes.meet("x"), size=3)
    assert all(isinstance(e, TemporaryError) and "node 2 of 3 has not come" in str(e) for e in found)


def test_a_port_that_is_taken_may_be_free_later():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(TemporaryError, match="it is in use"):
            Nodes(0, 2, "127.0.0.1", server.getsockname()[1]).__enter__()


def test_all_hear_what_all_say_in_order():
    def body(nodes):
        nodes.meet("the same")
        heard = [nodes.exchange({"rank": nodes.rank, "round": i}) for i in range(3)]
        nodes.wait()
        return heard

    expected = [[{"rank": r, "round": i} for r in range(3)] for i in range(3)]
    assert together(body, body, body) == [expected] * 3


def test_nodes_that_run_something_else_are_refused():
    found = together(*(lambda nodes: nodes.meet("abc"[nodes.rank]) for _ in range(3)))
    assert all(
        isinstance(e, UserError) and "node 1: it runs something else than node 0 (b, a)" in str(e) for e in found
    )
    # also where they count differently
    port, wrong = free_port(), []

    def other():
        try:
            Nodes(1, 3, "127.0.0.1", port).__enter__()
        except UserError as error:
            wrong.append(str(error))

    with Nodes(0, 2, "127.0.0.1", port):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
    assert wrong and "it is one of 3 nodes, node 0 one of 2" in wrong[0]


@pytest.mark.parametrize("fails", [0, 1, 2])
@pytest.mark.parametrize(
    "error, kind, words",
    [
        (UserError("the soup is cold", where="kitchen:3", fix="warm it"), UserError, "kitchen:3: the soup is cold"),
        (TemporaryError("the store does not answer"), TemporaryError, "the store does not answer"),
        (MemoryError(), UserError, "there is not enough memory"),
        (Stopped("a checkpoint is saved"), Stopped, "a checkpoint is saved"),
        (KeyError("oops"), RuntimeError, "KeyError: 'oops'"),
    ],
)
def test_as_one_ends_all_end(error, kind, words, fails):
    bodies = [working] * 3
    bodies[fails] = raising(error)
    found = together(*bodies)
    for rank, other in enumerate(found):
        if rank != fails:
            assert type(other) is kind and words in str(other) and f"node {fails}" in str(other)


def test_a_node_that_says_no_last_word_is_lost():
    def vanishing(nodes):
        nodes.meet("the same")
        nodes._lines[0].finish()
        nodes._lines[0].close()

    found = together(working, vanishing, working)
    for other in (found[0], found[2]):
        assert isinstance(other, TemporaryError) and "node 1: this node is lost" in str(other)


def test_so_is_one_that_is_silent(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 1.0)  # and no beat before that
    found = together(working, working)
    assert all(isinstance(e, TemporaryError) and "this node is lost" in str(e) for e in found)


def test_helpers_end_well_only_after_the_result_is_there():
    order = []

    def first(nodes):
        nodes.meet("the same")
        order.append("committed")

    def helper(nodes):
        nodes.meet("the same")
        nodes.wait()
        order.append("ended")

    together(first, helper, helper)
    assert order == ["committed", "ended", "ended"]


def test_who_says_something_else_at_the_port_is_not_let_in():
    port, found = free_port(), []

    def helper():
        with Nodes(1, 2, "127.0.0.1", port) as nodes:
            found.append(nodes.exchange("b"))
            nodes.wait()

    with Nodes(0, 2, "127.0.0.1", port) as nodes:
        with socket.create_connection(("127.0.0.1", port)) as stranger:  # before the helper: then the port closes
            stranger.sendall(b"GET / HTTP/1.1\r\n")
            assert stranger.recv(100) == b""
        thread = threading.Thread(target=helper)
        thread.start()
        found.append(nodes.exchange("a"))
    thread.join(60)
    assert found == [["a", "b"]] * 2

"""The machine is shared out: never more threads than cores, one GPU for one stage."""

import pytest

from runner.resources import Pool, elsewhere
from runner.spec import Resources


@pytest.fixture
def pool(monkeypatch):
    """Eight cores, two GPUs, 100 bytes of memory."""

    def make(jobs: int = 0, gpus: str = "0,1") -> Pool:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 1}[name])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        return Pool(jobs)

    return make


def threads(pool: Pool, share) -> int:
    return int(pool.environment(share)["OMP_NUM_THREADS"])


def test_a_stage_alone_has_the_whole_machine(pool):
    p = pool()
    share = p.take(Resources(), 1, idle=True)
    assert threads(p, share) == 8
    assert p.take(Resources(), 1, idle=False) is None
    p.give(share)
    assert p.take(Resources(), 1, idle=False) is not None


def test_stages_that_start_together_have_equal_parts(pool):
    p = pool()
    shares = [p.take(Resources(), left, idle=left == 3) for left in (3, 2, 1)]
    assert [threads(p, s) for s in shares] == [2, 3, 3]


def test_what_a_stage_asks_for_counts(pool):
    p = pool()
    big = p.take(Resources(cpus=6), 2, idle=True)
    assert threads(p, big) == 6
    assert p.take(Resources(cpus=4), 1, idle=False) is None
    assert threads(p, p.take(Resources(), 1, idle=False)) == 2


def test_a_stage_that_asks_for_more_than_there_is_runs_alone(pool):
    p = pool()
    share = p.take(Resources(cpus=64, memory=1000, gpus=4), 1, idle=True)
    assert share is not None
    assert threads(p, share) == 8
    assert p.take(Resources(), 1, idle=False) is None


def test_memory_counts(pool):
    p = pool()
    assert p.take(Resources(cpus=1, memory=60), 2, idle=True)
    assert p.take(Resources(cpus=1, memory=60), 1, idle=False) is None
    assert p.take(Resources(cpus=1, memory=40), 1, idle=False)


def test_each_gpu_goes_to_one_stage(pool):
    p = pool(gpus="3,5")
    shares = [p.take(Resources(cpus=1, gpus=1), 1, idle=False) for _ in range(3)]
    assert [p.environment(s).get("CUDA_VISIBLE_DEVICES") for s in shares[:2]] == ["3", "5"]
    assert shares[2] is None
    p.give(shares[1])
    again = p.take(Resources(cpus=1, gpus=1), 1, idle=False)
    assert p.environment(again)["CUDA_VISIBLE_DEVICES"] == "5"
    assert "CUDA_VISIBLE_DEVICES" not in p.environment(p.take(Resources(cpus=1), 1, idle=False))


def test_without_gpus_a_stage_that_asks_for_one_runs_all_the_same(pool):
    p = pool(gpus="")
    assert p.take(Resources(gpus=1), 1, idle=False) is not None


def test_jobs_is_a_number_of_stages(pool):
    p = pool(jobs=2)
    shares = [p.take(Resources(), left, idle=left == 2) for left in (2, 1)]
    assert [threads(p, s) for s in shares] == [4, 4]
    assert p.take(Resources(), 1, idle=False) is None


def test_a_stage_keeps_to_fewer_threads_if_it_was_told_so(pool, monkeypatch):
    p = pool()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(p, p.take(Resources(), 1, idle=True)) == 3


def test_what_runs_elsewhere_takes_nothing_of_this_machine(pool):
    p = pool()
    share = elsewhere(Resources(gpus=8, cpus=2.5, memory=10**15))
    assert threads(p, share) == 3
    assert p.environment(elsewhere(Resources())) == {}
    p.give(share)
    assert threads(p, p.take(Resources(), 1, idle=True)) == 8

"""Work on many items, in threads and in two processes."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from hf_zipit.errors import SpecError
from hf_zipit.matching.shared_work import work_on_all

SCRIPT = """
import sys, torch
from accelerate import Accelerator
from hf_zipit.errors import SpecError
from hf_zipit.matching.shared_work import work_on_all

accelerator = Accelerator()
done = []
found = work_on_all(lambda item: done.append(item) or item * item, list(range(7)), "Squaring", accelerator)
assert found == [0, 1, 4, 9, 16, 25, 36], found
assert len(done) == (4 if accelerator.is_main_process else 3), done

def fail(item):
    if item == 3:  # on the second process only
        raise SpecError("item 3 is bad")
    return item

try:
    work_on_all(fail, list(range(7)), "Failing", accelerator)
except SpecError as error:
    sys.stdout.write(f"refused: {error}\\n")  # in one piece: the other process writes to the same place
torch.distributed.destroy_process_group()
"""


def test_the_results_are_in_the_order_of_the_items():
    assert work_on_all(lambda item: item * item, list(range(50)), "Squaring") == [i * i for i in range(50)]
    assert work_on_all(str, [], "Nothing") == []


def test_items_run_side_by_side_and_threads_are_left_as_they_were():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = threading.Barrier(2, timeout=60)  # passed by two at a time only
        assert work_on_all(lambda item: both.wait() is not None and item, [1, 2], "Waiting") == [1, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_error_of_the_first_item_that_fails_is_raised():
    def fail(item):
        raise SpecError(f"item {item}")

    with pytest.raises(SpecError, match="item 0"):
        work_on_all(fail, [0, 1, 2], "Failing")


@pytest.mark.slow
def test_two_processes_share_the_items_and_the_errors(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: item 3 is bad") == 2

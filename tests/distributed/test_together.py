"""Two processes of which one fails: both end, with the message of the one."""

import sys
from pathlib import Path


def worker(folder: str) -> None:
    import torch.distributed as dist

    from dinov2_hf.runs.together import on_all, on_main

    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def fail_on(failing):
        def act():
            if rank == failing:
                raise OSError(28, "No space left on device")
            return rank

        return act

    said = [str(on_all(lambda: rank * 10)), str(on_main(lambda: f"of {rank}"))]
    for action in (lambda: on_all(fail_on(0)), lambda: on_all(fail_on(1)), lambda: on_main(fail_on(0))):
        try:
            action()
        except OSError as error:
            said.append(str(error))
    said.append(str(on_all(lambda: rank)))  # and they are still together
    Path(folder, f"{rank}.txt").write_text("\n".join(said))
    dist.destroy_process_group()  # threads of an open connection can abort a process that ends


def test_where_one_process_fails_all_do_and_say_why(launch, tmp_path):
    launch(2, __file__, tmp_path)
    own, other = "[Errno 28] No space left on device", "process {}: [Errno 28] No space left on device"
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in range(2))
    assert first == ["[0, 10]", "of 0", own, other.format(1), own, "[0, 1]"]
    assert second == ["[0, 10]", "of 0", other.format(0), own, other.format(0), "[0, 1]"]


if __name__ == "__main__":
    worker(sys.argv[1])

#!/usr/bin/env python3
"""Runs engine_run as several ranks, as launchers start it, and compares what each leaves with a run that was alone.

    python3 tests/tools/ranks_test.py [--engine build/release/bin/engine_run] [--kills 20] [--torchrun TORCHRUN]

mpirun is used where it is installed, else its cases are skipped, and said so. torchrun: the program itself, by hand;
without it the variables that it sets are set here.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

CONFIG = """
run: {name: r, seed: 7, device: cpu, precision: fp32, threads: 1}
data: {synthetic: {count: 48, height: 16, width: 32}, augment: {flip: horizontal, translation: 0.1}}
loss: {focal: {exclude: [0]}}
train: {batch: 8, epochs: 3, panels: 1, slices: 4, checkpoint_minutes: 0.001}
model:
  input: {height: 16, width: 32, channels: 1}
  nodes:
    e: {block: conv_norm, in: input, filters: 8, kernel: 3, norm: group}
    d: {op: dropout, in: e, rate: 0.2}
    logits: {op: conv, in: d, filters: 5, kernel: 1}
"""
FILES = ("best.safetensors", "scores.json", "samples.csv")
LIMIT = 12  # seconds from a failure of one rank to the end of all


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Tests:
    def __init__(self, args, folder):
        self.engine, self.folder, self.kills = str(pathlib.Path(args.engine).resolve()), folder, args.kills
        self.torchrun = args.torchrun
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "SLURM_", "PMI", "RANK"))}
        self.environment["OMP_WAIT_POLICY"] = "passive"
        (folder / "c.yaml").write_text(CONFIG)

    def words(self, name, *more):
        return [self.engine, "c.yaml", f"run.name={name}", *more]

    def start(self, words, **variables):
        return subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**self.environment, **{k: str(v) for k, v in variables.items()}})

    def run(self, words, **variables):
        child = self.start(words, **variables)
        out, err = child.communicate(timeout=120)
        return child.returncode, out, err

    def ranks(self, size, words_of, variables_of):
        """Starts each rank; their (code, out, err) in order."""
        children = [self.start(words_of(r), **variables_of(r)) for r in range(size)]
        return [(c.wait(timeout=120), *c.communicate()) for c in children]

    def torch_variables(self, size, rank, port, **more):
        return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more}

    def same(self, name, than="alone"):
        for file in FILES:
            a, b = (self.folder / "runs" / run / file for run in (than, name))
            assert a.read_bytes() == b.read_bytes(), f"{b} differs from {a}"

    # The cases.
    def alone(self):
        code, _, err = self.run(self.words("alone"))
        assert code == 0, err

    def devices(self):
        for n in (2, 4):
            code, out, err = self.run(self.words(f"devices{n}", f"run.devices={n}"))
            assert code == 0, err
            assert f"rank {n - 1} of {n} on " in out and f"which {n} ranks share" in out, out
            self.same(f"devices{n}")

    def a_batch_of_each_device(self):
        code, out, err = self.run(self.words("each", "run.devices=2", "train.per_device_batch=4", "train.batch=99"))
        assert code == 0, err
        self.same("each")
        port = free_port()
        results = self.ranks(2, lambda r: self.words("eachtorch", "train.per_device_batch=4"),
                             lambda r: self.torch_variables(2, r, port))
        assert all(code == 0 and err == "" for code, _, err in results), results
        self.same("eachtorch")
        code, _, err = self.run(self.words("toomany", "run.devices=2", "train.per_device_batch=40000"))
        assert code == 1 and "train.per_device_batch: " in err and "65536" in err, err

    def what_is_exchanged_is_said(self):
        weights = "(%s; the weights, padded, are 1.8 KiB)"
        for words, said in ((["run.reduce=ring"], "2 ranks; each gives 1.8 KiB of gradients in a step " + weights % "ring"),
                            (["run.reduce=bf16"], "each gives 0.9 KiB of gradients in a step " + weights % "bf16"),
                            ([], "each gives 3.5 KiB of gradients in a step " + weights % "exact")):
            code, out, err = self.run([self.engine, "c.yaml", "run.devices=2", "--explain", *words])
            assert code == 0 and said in out, (said, out, err)
        code, out, _ = self.run(self.words("said", "run.devices=2"))
        assert code == 0 and said in out and "through the host" in out, out

    # The loss of the tenth step, with batch norm over the images of both ranks.
    def batch_norm_over_all_ranks(self):
        losses = {}
        for n in (1, 2):
            code, _, err = self.run(self.words(f"sync{n}", f"run.devices={n}", "model.nodes.e.norm=batch",
                                               "train.slices=auto", "train.sync_batch_norm=true",
                                               "optimizer={sgd: {lr: 0.001, momentum: 0.9}}",
                                               "train.steps_per_epoch=1", "train.epochs=10"))
            assert code == 0, err
            with open(self.folder / "runs" / f"sync{n}" / "history.jsonl") as f:
                losses[n] = [json.loads(line)["loss"] for line in f]
        assert len(losses[1]) == 10
        assert max(abs(a - b) / a for a, b in zip(losses[1], losses[2])) < 1e-6, losses
        for words, part in ((["train.sync_batch_norm=true"], "train.sync_batch_norm: the network has no batch norm"),
                            (["loss={lovasz: {}}", "train.slices=auto"], "loss: sorts the pixels of the batch")):
            for more in ([], ["--explain"]):
                code, out, err = self.run(self.words("refused", "run.devices=2", *words, *more))
                assert code == 1 and out == "" and part in err and err.count("\n") == 1, (out, err)

    def as_torchrun_says(self):
        for n in (2, 4):
            port = free_port()
            results = self.ranks(n, lambda r: self.words(f"torch{n}"), lambda r: self.torch_variables(
                n, r, port, TORCHELASTIC_RUN_ID="none", TORCHELASTIC_RESTART_COUNT=0))
            assert all(code == 0 and err == "" for code, _, err in results), results
            assert all(out == "" for _, out, _ in results[1:]), "rank 0 alone speaks"
            self.same(f"torch{n}")

    def by_torchrun(self):
        if not self.torchrun:
            return "no --torchrun"
        for n in (2, 4):
            code, _, err = self.run([self.torchrun, "--no-python", "--nproc-per-node", str(n), "--master-port",
                                     str(free_port()), *self.words(f"torchrun{n}")])
            assert code == 0, err
            self.same(f"torchrun{n}")

    def as_slurm_says(self):
        job = random.randrange(1000000)
        results = self.ranks(2, lambda r: self.words("slurm"), lambda r: {
            "SLURM_PROCID": r, "SLURM_STEP_NUM_TASKS": 2, "SLURM_LOCALID": r, "SLURM_STEP_TASKS_PER_NODE": 2,
            "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": job, "SLURM_STEP_ID": 0})
        assert all(code == 0 for code, _, _ in results), results
        self.same("slurm")

    def by_mpirun(self):
        if not shutil.which("mpirun"):
            return "mpirun is not installed"
        if not (pathlib.Path(self.engine).parent / "libregolith_mpi.so").exists():
            return "this build has no MPI"
        for n in (1, 2, 4):
            code, out, err = self.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n",
                                       str(n), *self.words(f"mpi{n}")])
            assert code == 0, err
            assert f"rank {n - 1} of {n} on " in out, out
            self.same(f"mpi{n}")

    def what_differs_is_named(self):
        for word, part in (("optimizer.adamw.lr=0.5", "optimizer.adamw.lr: 0.001 -> 0.5"),
                           ("data.synthetic.seed=9", "data.synthetic.seed"), ("train.batch=16", "train.batch: 8 -> 16")):
            port, began = free_port(), time.monotonic()
            results = self.ranks(3, lambda r: self.words("differs", *([word] if r == 1 else [])),
                                 lambda r: self.torch_variables(3, r, port))
            assert [code for code, _, _ in results] == [1, 1, 1], results
            err = results[0][2]
            assert "rank 1 of 3 on " in err and "has another configuration than rank 0" in err and part in err, err
            assert err.count("\n") == 1 and results[1][2] == results[2][2] == "", results
            assert time.monotonic() - began < LIMIT
        assert not (self.folder / "runs/differs").exists()

    def a_rank_that_fails_ends_all(self):
        port = free_port()
        results = self.ranks(2, lambda r: self.words("fails", *(["train.epochs=x"] if r == 1 else [])),
                             lambda r: self.torch_variables(2, r, port))
        assert "rank 1 of 2 on " in results[0][2] and "train.epochs: " in results[0][2], results
        results = self.ranks(2, lambda r: self.words("fails", *(["train.epochs=x"] if r == 0 else [])),
                             lambda r: self.torch_variables(2, r, port))
        assert "rank 0 of 2 on " in results[0][2] and "train.epochs: " in results[0][2], results
        assert results[1] == (1, "", ""), results

    def other_numbers_of_ranks_end_the_meeting(self):
        port, began = free_port(), time.monotonic()
        start = lambda r: self.start(self.words("none"), **self.torch_variables(3 if r < 2 else 4, r, port))
        first = [start(0), start(2)]
        first[1].wait(timeout=60)
        for child in (start(1), *first):  # which comes when the meeting has ended, and hears why all the same
            _, err = child.communicate(timeout=60)
            assert child.returncode == 1 and "rank 2 of 4 on " in err and "WORLD_SIZE" in err, err
            assert err.count("\n") == 1, err
        assert time.monotonic() - began < LIMIT

    def environments_that_contradict_themselves(self):
        for variables, part in ((self.torch_variables(2, 5, 1), "rank 5 of 2"),
                                ({**self.torch_variables(2, 1, 1), "MASTER_PORT": "x"}, "MASTER_PORT=x: expected a number"),
                                ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": 1}, "MASTER_ADDR is not"),
                                ({"WORLD_SIZE": 2}, "WORLD_SIZE=2: RANK is not set"),
                                (self.torch_variables(2, 1, 0), "MASTER_PORT=0: expected a port"),
                                (self.torch_variables(2, 0, 70000), "MASTER_PORT=70000: expected a port")):
            code, _, err = self.run(self.words("none"), **variables)
            assert code == 1 and part in err and err.count("\n") == 1, err

    def long(self, name, *more):
        return self.words(name, "train.steps_per_epoch=60", "train.epochs=4", *more)

    def a_signal_writes_one_checkpoint(self):
        code, _, err = self.run(self.long("long"))
        assert code == 0, err
        child = self.start(self.long("signal", "run.devices=2"))
        while not (self.folder / "runs/signal/last.safetensors").exists():
            time.sleep(.01)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 130 and "interrupted after " in out, out
        code, out, err = self.run(self.long("signal", "run.devices=4", "--resume", "runs/signal"))
        assert code == 0, err
        self.same("signal", "long")

    def started(self, name, n):
        """Ranks of a long run that has written a checkpoint."""
        port = free_port()
        children = [self.start(self.long(name), **self.torch_variables(n, r, port)) for r in range(n)]
        while not (self.folder / "runs" / name / "last.safetensors").exists():
            time.sleep(.005)
        return children

    def without_rank_0_rank_1_speaks(self):
        children = self.started("headless", 3)
        children[0].kill()
        results = [(c.wait(timeout=60), *c.communicate()) for c in children]
        assert "rank 0 of 3 on " in results[1][2] and "is gone" in results[1][2], results
        assert results[1][2].count("\n") == 1 and results[2][2] == "", results

    def a_job_that_was_stopped_goes_on(self):
        children = self.started("stopped", 2)
        for c in children:
            c.send_signal(signal.SIGSTOP)
        time.sleep(11)
        for c in children:
            c.send_signal(signal.SIGCONT)
        results = [(c.wait(timeout=60), *c.communicate()) for c in children]
        assert all(code == 0 and err == "" for code, _, err in results), results
        self.same("stopped", "long")

    def a_stopped_rank_does_not_outlive_rank_0(self):
        child = self.start(self.long("orphan", "run.devices=3"))
        while not (self.folder / "runs/orphan/last.safetensors").exists():
            time.sleep(.005)
        with open(f"/proc/{child.pid}/task/{child.pid}/children") as f:
            last = int(f.read().split()[-1])
        os.kill(last, signal.SIGSTOP)
        _, err = child.communicate(timeout=30)  # their pipes end with the last of them
        assert child.returncode == 1 and "has given no sign of life" in err and not os.path.exists(f"/proc/{last}"), err

    def killed_ranks_end_all_and_the_run_goes_on(self):
        for i in range(self.kills):
            name, victim, n = f"kill{i}", random.randrange(4), 4
            port = free_port()
            children = [self.start(self.long(name), **self.torch_variables(n, r, port)) for r in range(n)]
            while not (self.folder / "runs" / name / "last.safetensors").exists():
                time.sleep(.005)
            time.sleep(random.random() * .3)
            children[victim].kill()
            began = time.monotonic()
            results = [(c.wait(timeout=60), *c.communicate()) for c in children]
            took = time.monotonic() - began
            assert took < LIMIT, f"{took:.1f} s until all had ended"
            killed = results[victim][0] == -signal.SIGKILL
            if killed and victim > 0 and results[0][0] != 0:
                assert f"rank {victim} of {n} on " in results[0][2], results[0]
            assert all(code != 0 for r, (code, _, _) in enumerate(results) if r != victim) or not killed or \
                (self.folder / "runs" / name / "scores.json").exists(), results
            if not (self.folder / "runs" / name / "scores.json").exists():
                code, _, err = self.run(self.long(name, f"run.devices={random.choice((1, 2, 4))}", "--resume",
                                                  f"runs/{name}"))
                assert code == 0, err
            self.same(name, "long")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="build/release/bin/engine_run")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--torchrun")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tests = Tests(args, pathlib.Path(folder))
        for name in ("alone", "devices", "a_batch_of_each_device", "what_is_exchanged_is_said",
                     "batch_norm_over_all_ranks", "as_torchrun_says", "by_torchrun", "as_slurm_says", "by_mpirun",
                     "what_differs_is_named", "a_rank_that_fails_ends_all",
                     "other_numbers_of_ranks_end_the_meeting", "environments_that_contradict_themselves",
                     "a_signal_writes_one_checkpoint", "without_rank_0_rank_1_speaks",
                     "a_job_that_was_stopped_goes_on", "a_stopped_rank_does_not_outlive_rank_0", "killed_ranks_end_all_and_the_run_goes_on"):
            began = time.monotonic()
            skipped = getattr(tests, name)()
            print(f"{'skipped: ' + skipped if skipped else 'ok'}: {name} ({time.monotonic() - began:.1f} s)", flush=True)


if __name__ == "__main__":
    main()

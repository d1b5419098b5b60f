#!/usr/bin/env python3
"""Kills a run at random moments, and fills the disk at each of its writes; what is then resumed must end with the bytes
of a run that nothing happened to.

    python3 tests/tools/kill_and_disk_full.py [--engine build/release/bin/engine_run] [--kills 200] [--writes 0]

--kills N: kill -9 until N have hit a run. --writes N: N moments at which the disk fills, spread over all (0: each of
them). A library that is loaded first (built with cc, no root needed) lets the k-th write, fsync, rename, mkdir or
creation of a file fail with ENOSPC, a write after half of its bytes, and every one after it.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

CONFIG = """
run: {name: r, seed: 7, device: cpu, precision: fp32, threads: 1}
data: {synthetic: {count: 24, height: 16, width: 32}, augment: {flip: horizontal, translation: 0.1}}
loss: {focal: {exclude: [0]}}
optimizer: {adamw: {lr: 1.0e-2}}
schedule: {reduce_on_plateau: {factor: 0.5, patience: 1, min_delta: 0.01}}
train: {batch: 4, epochs: 5, steps_per_epoch: 40, panels: 1, checkpoint_minutes: 0.001, early_stopping: {patience: 4}}
model:
  input: {height: 16, width: 32, channels: 1}
  nodes:
    e: {block: conv_norm, in: input, filters: 8, kernel: 3, norm: batch}
    d: {op: dropout, in: e, rate: 0.2}
    logits: {op: conv, in: d, filters: 5, kernel: 1}
"""
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static long count;  /* of one thread: the run has no other that writes */
static int full(void) {
  const char* at = getenv("DISK_FULL_AT");
  if (++count < (at ? atol(at) : 1L << 40)) return 0;
  errno = ENOSPC;
  return 1;
}
static int regular(int file) {
  struct stat s;
  return fstat(file, &s) == 0 && S_ISREG(s.st_mode);
}
#define NEXT(f) ((__typeof__(&f))dlsym(RTLD_NEXT, #f))
ssize_t write(int file, const void* data, size_t bytes) {
  if (file < 3 || !regular(file)) return NEXT(write)(file, data, bytes);
  static int half;
  if (full() && (half++ || bytes < 2)) return -1;
  return NEXT(write)(file, data, half ? bytes / 2 : bytes);
}
int fsync(int file) { return regular(file) && full() ? -1 : NEXT(fsync)(file); }
int rename(const char* from, const char* to) { return full() ? -1 : NEXT(rename)(from, to); }
int mkdir(const char* path, mode_t mode) { return full() ? -1 : NEXT(mkdir)(path, mode); }
#define OPEN(name)                                                  \
  int name(const char* path, int flags, ...) {                      \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    const int mode = flags & O_CREAT ? va_arg(rest, int) : 0;       \
    va_end(rest);                                                   \
    return (flags & O_CREAT) && full() ? -1 : NEXT(name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
__attribute__((destructor)) static void tell(void) {
  const char* to = getenv("DISK_FULL_COUNT");
  FILE* f = to ? fopen(to, "w") : NULL;
  if (f) fprintf(f, "%ld", count), fclose(f);
}
"""


class Run:
    """A folder of its own with the configuration, and the commands in it."""

    def __init__(self, engine, folder):
        self.engine, self.folder, self.runs = engine, folder, folder / "runs" / "r"
        folder.mkdir(exist_ok=True)
        (folder / "c.yaml").write_text(CONFIG)

    def start(self, **environment):
        """Goes on where there is something to go on from, else starts anew."""
        command = [self.engine, "c.yaml"]
        if (self.runs / "last.safetensors").exists():
            command += ["--resume", "runs/r"]
        else:
            shutil.rmtree(self.runs, ignore_errors=True)
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                env=os.environ | environment)

    def finish(self):
        process = self.start()
        _, errors = process.communicate()
        if process.returncode != 0:
            sys.exit(f"kill_and_disk_full.py: it does not go on: {errors}")

    def result(self):
        files = {name: (self.runs / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "scores.json")}
        files["history.jsonl"] = [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")}
                                  for line in (self.runs / "history.jsonl").read_text().splitlines()]
        files["files"] = sorted(f.name for f in self.runs.iterdir() if f.suffix != ".tmp")
        return files


def expect(result, whole, what):
    for name in whole:
        if result[name] != whole[name]:
            sys.exit(f"kill_and_disk_full.py: {what}: {name} differs from that of a run that nothing happened to")


def kill(engine, folder, whole, seconds, kills):
    draw, hits, runs = random.Random(1), 0, 0
    while hits < kills:
        run = Run(engine, folder / f"kill{runs}")
        while True:
            process = run.start()
            time.sleep(draw.uniform(0, seconds))
            process.kill()
            process.communicate()
            if process.returncode == 0:
                break
            hits += 1
            if hits == kills:
                run.finish()
                break
        expect(run.result(), whole, f"after {hits} kills")
        shutil.rmtree(run.folder)
        runs += 1
    print(f"{hits} kills in {runs} runs: every byte as without them")


def fill(engine, folder, whole, points):
    (folder / "full.c").write_text(SHIM)
    shim = str(folder / "full.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, str(folder / "full.c"), "-ldl"], check=True)
    counted = Run(engine, folder / "count")
    counted.start(LD_PRELOAD=shim, DISK_FULL_COUNT=str(folder / "count.txt")).communicate()
    count = int((folder / "count.txt").read_text())
    points = count if points == 0 else min(points, count)
    told = 0
    for i in range(points):
        at = 1 + i * count // points
        run = Run(engine, folder / f"full{at}")
        process = run.start(LD_PRELOAD=shim, DISK_FULL_AT=str(at))
        _, errors = process.communicate()
        # A write less than counted, or one whose failure does no harm (a flush of the folder): the run ends well.
        if process.returncode not in (0, 1) or (process.returncode == 1 and "No space left" not in errors):
            sys.exit(f"kill_and_disk_full.py: full at {at} of {count}: exit {process.returncode}, {errors}")
        told += process.returncode
        if process.returncode == 1 and any(run.folder.rglob("*.tmp")):
            sys.exit(f"kill_and_disk_full.py: full at {at} of {count}: a temporary file is left")
        run.finish()
        expect(run.result(), whole, f"full at {at} of {count}")
        shutil.rmtree(run.folder)
    print(f"disk full at {points} of {count} writes, {told} of them told: every byte as without")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="build/release/bin/engine_run", type=pathlib.Path)
    parser.add_argument("--kills", default=200, type=int)
    parser.add_argument("--writes", default=0, type=int)
    args = parser.parse_args()
    engine = str(args.engine.resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        began = time.monotonic()
        undisturbed = Run(engine, folder / "whole")
        undisturbed.finish()
        seconds, whole = time.monotonic() - began, undisturbed.result()
        kill(engine, folder, whole, seconds, args.kills)
        fill(engine, folder, whole, args.writes)
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

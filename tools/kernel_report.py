"""What ptxas makes of every kernel of kernels/*.cu, with no GPU: registers, spills, shared memory, theoretical
occupancy, vector loads and stores, and tensor-core instructions.

A header promises an occupancy in a comment line, for all of its kernels or for the ones of a name:

  // Occupancy: at least 50% (256 threads).
  // Occupancy of gate: at least 25% (128 threads, 35072 bytes of shared memory).

Where it names no threads, those of __launch_bounds__ count, else 256. The shared memory is what the launch asks for,
which no compiler knows. A header without such a line promises 50%. With --check, a spill or an occupancy below the
promise is an error.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Per multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"); all of these
# have 65536 registers, given out 256 at a time to a warp, and take 1 KiB of shared memory for each block.
LIMITS = {
    "80": {"warps": 64, "blocks": 32, "shared": 164 * 1024},
    "90": {"warps": 64, "blocks": 32, "shared": 228 * 1024},
    "100": {"warps": 64, "blocks": 32, "shared": 228 * 1024},
}
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo", f"-I{ROOT}"]


def fail(message):
    sys.exit(f"kernel_report: {message}")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def sources_of(path, seen):
    """The file and the files of this repository that it includes."""
    if path not in seen and path.is_file():
        seen.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M):
            sources_of(ROOT / name, seen)
    return seen


def short_name(demangled):
    """add<float, 4> of `void regolith::kernels::gpu::(anonymous namespace)::add<float, (int)4>(float const*, ...)`."""
    depth, end = 0, len(demangled)
    name = re.sub(r"\((?:anonymous namespace|int|bool|unsigned int|\w+::\w+)\)(::)?", "", demangled)
    name = re.sub(r"(?:\w+::)+", "", name)
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    return name[:end].split(" ", 1)[-1] if name.startswith("void ") else name[:end]


def promises_of(source):
    """[(kernel or None, percent, threads or None, shared bytes)] of the source's header."""
    header = source.with_suffix(".h")
    text = header.read_text() if header.is_file() else ""
    found = []
    for line in re.findall(r"^// Occupancy\b.*$", text, re.M):
        m = re.fullmatch(
            r"// Occupancy(?: of (\w+))?: at least (\d+)%(?: \((?:(\d+) threads)?(?:, )?"
            r"(?:(\d+) bytes of shared memory)?\))?\.", line)
        if not m:
            fail(f"{header}: cannot read `{line}`; write `// Occupancy: at least 50% (256 threads).`")
        found.append((m[1], int(m[2]), int(m[3]) if m[3] else None, int(m[4] or 0)))
    return found


def occupancy(arch, registers, threads, shared):
    """Percent of the warps that a multiprocessor holds."""
    limits = LIMITS[arch]
    warps = -(-threads // 32)
    by_registers = 65536 // (-(-registers * 32 // 256) * 256) // 4 * 4 // warps  # a quarter of it per scheduler
    by_shared = limits["shared"] // (-(-shared // 128) * 128 + 1024)
    blocks = min(limits["blocks"], limits["warps"] // warps, by_registers, by_shared)
    return 100 * blocks * warps // limits["warps"]


def is_global(op, kind):
    """A load or store of global memory; one without a state space, whose pointer the compiler cannot place, counts."""
    parts = re.split(r"[.:]+", op)
    return parts[0] == kind and not {"param", "shared", "local", "const"} & set(parts)


def is_vector(op):
    return re.search(r"\.v[248]\b", op) is not None


def ptx_in(object_file, arch):
    """The PTX for that architecture in what nvcc compiled with --no-compress, else None."""
    for text in re.findall(rb"\.version \d[^\0]*", object_file.read_bytes() if object_file else b""):
        if re.search(rf"^\.target sm_{arch}\b".encode(), text, re.M):
            return text.decode()
    return None


def inspect(source, arch, cache, object_file):
    """A row per kernel: what the compiler alone knows."""
    digest = hashlib.sha256(f"{arch} {FLAGS} {TOOLS} {pathlib.Path(__file__).read_text()}".encode())
    for path in sorted(sources_of(source, set())):
        digest.update(path.read_bytes())
    kept = cache / f"{source.stem}.{arch}.{digest.hexdigest()[:16]}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = pathlib.Path(folder, "kernels.ptx"), pathlib.Path(folder, "kernels.cubin")
        if built := ptx_in(object_file, arch):
            ptx.write_text(built)
        else:
            run(["nvcc", *FLAGS, f"-arch=sm_{arch}", "-ptx", source, "-o", ptx])
        log = run(["ptxas", "-v", f"-arch=sm_{arch}", ptx, "-o", cubin])
        text = ptx.read_text()
    rows = []
    for entry in re.split(r"(?=^\.(?:visible |weak )?\.?entry |^\.entry )", text, flags=re.M)[1:]:
        symbol = re.match(r".*?\.entry (\w+)", entry)[1]
        if "3cub" in symbol:  # of a library's namespace: no promise of ours
            continue
        about = re.search(rf"Compiling entry function '{symbol}' .*?(?=Compiling entry function|\Z)", log, re.S)[0]
        number = lambda pattern: int((re.search(pattern, about) or [0, 0])[1])
        bounds = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", entry)
        threads = None
        if bounds:
            threads = int(bounds[1]) * int(bounds[2] or 1) * int(bounds[3] or 1)
        ops = re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\w*\.[\w.:]+)", entry, re.M)
        loads, stores = ([op for op in ops if is_global(op, kind)] for kind in ("ld", "st"))
        rows.append({
            "source": source.name, "arch": int(arch), "symbol": symbol, "bounds": threads,
            "registers": number(r"Used (\d+) registers"),
            "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            "static_shared": number(r"(\d+) bytes smem"),
            "loads": len(loads), "vector_loads": sum(map(is_vector, loads)),
            "stores": len(stores), "vector_stores": sum(map(is_vector, stores)),
            "mma": sum(op.startswith(("mma.sync", "wgmma.mma_async", "tcgen05.mma")) for op in ops),
        })
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f"{source.stem}.{arch}.*.json"):
        old.unlink()
    kept.write_text(json.dumps(rows))
    return rows


def judge(row, promises):
    """Adds the occupancy, and the promise that the row's header makes."""
    plain = re.match(r"\w*", row["kernel"])[0]
    name, percent, threads, shared = (None, 50, None, 0)
    for promise in promises:  # one of this kernel's own goes before one of all
        if promise[0] in (None, plain) and (promise[0] or name is None):
            name, percent, threads, shared = promise
    row["threads"] = threads or row["bounds"] or 256
    row["shared"] = row["static_shared"] + shared
    row["occupancy"] = occupancy(str(row["arch"]), row["registers"], row["threads"], row["shared"])
    row["promised"] = percent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(LIMITS), choices=list(LIMITS), help="default: all")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only NAME.cu")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "kernels", help="where the kernels are")
    parser.add_argument("--objects", nargs="+", type=pathlib.Path, default=[], metavar="NAME.cu.o",
                        help="what a build has just made of the kernels: their PTX is taken from there")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--check", action="store_true", help="fail on a spill and on a promise that is not kept")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "build" / "kernel_report",
                        help="where results are kept until a source changes (default: %(default)s)")
    args = parser.parse_args()
    for tool in ("nvcc", "ptxas", "c++filt"):
        if shutil.which(tool) is None:
            fail(f"{tool} is not on the PATH; it comes with the " + ("binutils" if tool == "c++filt" else "CUDA toolkit"))
    sources = [args.folder / f"{n}.cu" for n in args.kernels or []] or sorted(args.folder.glob("*.cu"))
    if not sources:
        fail(f"{args.folder}: no kernels")
    for source in sources:
        if not source.is_file():
            fail(f"{source}: no such kernel")
    global TOOLS
    TOOLS = run(["nvcc", "--version"])
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        objects = {path.name.split(".")[0]: path for path in args.objects}
        jobs = [pool.submit(inspect, source, arch, args.cache, objects.get(source.stem))
                for arch in args.arch for source in sources]
        rows = [row for job in jobs for row in job.result()]
    names = subprocess.run(["c++filt"], input="\n".join(r["symbol"] for r in rows), capture_output=True, text=True,
                           check=True).stdout.splitlines()
    promises = {source.name: promises_of(source) for source in sources}
    for row, name in zip(rows, names):
        row["kernel"] = short_name(name)
        judge(row, promises[row["source"]])
    for source in sources:
        for name, *_ in promises[source.name]:
            if name and not any(r["source"] == source.name and re.match(r"\w*", r["kernel"])[0] == name for r in rows):
                fail(f"{source.with_suffix('.h')}: promises an occupancy of {name}, which {source.name} does not have")

    width = max([len(r["kernel"]) for r in rows] + [6])
    print(f"{'arch':>4}  {'kernel':{width}} {'regs':>4} {'spill':>5} {'shared':>6} {'threads':>7} {'occupancy':>9} "
          f"{'loads v/all':>11} {'stores v/all':>12} {'mma':>4}")
    for r in rows:
        print(f"{r['arch']:>4}  {r['kernel']:{width}} {r['registers']:>4} {r['spill_bytes']:>5} {r['shared']:>6} "
              f"{r['threads']:>7} {r['occupancy']:>8}% {r['vector_loads']:>5}/{r['loads']:<5} "
              f"{r['vector_stores']:>6}/{r['stores']:<5} {r['mma']:>4}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    faults = []
    for r in rows:
        who = f"{r['source']}: {r['kernel']} on sm_{r['arch']}"
        if r["spill_bytes"] > 0:
            faults.append(f"{who} spills {r['spill_bytes']} bytes of registers")
        if r["occupancy"] < r["promised"]:
            faults.append(f"{who} has an occupancy of {r['occupancy']}% ({r['registers']} registers, {r['threads']} "
                          f"threads, {r['shared']} bytes of shared memory), its header promises {r['promised']}%")
    print(f"{len(rows)} kernels, {len(faults)} faults")
    for fault in faults:
        print(fault)
    return 1 if args.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())

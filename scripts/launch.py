"""Starts several processes of one run on this machine: python scripts/launch.py --processes 2 scripts/train.py ...

Each gets --coordinator, --num_processes, --process_id and its own devices. This is for trying out what a cluster will
do: one process can use all devices of a machine.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


def main() -> int:
    """Starts the processes and waits; ends all when one fails, with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--devices", type=int, default=1, help="of each process: GPUs if there are any, else CPU devices"
    )
    parser.add_argument("--patience", type=float, default=30, help="seconds to end after another process failed")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script and its arguments")
    args = parser.parse_args()
    if not args.command or args.processes < 1:
        parser.error("expected --processes N and a script with its arguments, such as scripts/train.py --config FILE")
    told: list[int] = []  # whoever is being started hears it, too
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to every process
    port = socket.socket()
    if shared := hasattr(socket, "SO_REUSEPORT"):  # JAX's server shares it; nobody else gets it until this process ends
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port.bind(("localhost", 0))
    coordinator = f"localhost:{port.getsockname()[1]}"
    if not shared:
        port.close()
    running: list[subprocess.Popen] = []
    for index in range(args.processes):
        gpus = range(index * args.devices, (index + 1) * args.devices)
        devices = {"JAX_NUM_CPU_DEVICES": str(args.devices), "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        place = [f"--coordinator={coordinator}", f"--num_processes={args.processes}", f"--process_id={index}"]
        running.append(subprocess.Popen([sys.executable, *args.command, *place], env={**os.environ, **devices}))
    failed, deadline = 0, None
    while any(process.poll() is None for process in running):
        while told:
            told.pop()
            for process in running:
                process.terminate()
        failed = failed or next((process.returncode for process in running if process.returncode), 0)
        if failed:
            deadline = deadline or time.monotonic() + args.patience
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
        time.sleep(0.1)
    failed = failed or next((process.returncode for process in running if process.returncode), 0)
    return 128 - failed if failed < 0 else failed  # 128 and the number of a signal, as in shells


if __name__ == "__main__":
    sys.exit(main())

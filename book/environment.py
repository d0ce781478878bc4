"""The environment in which notebooks give the same outputs everywhere."""

import os

KERNEL_ENV = {
    # no temporary path and no process id in warnings and tracebacks
    "IPYKERNEL_CELL_NAME": "<cell>",
    # live panels store their text, not a widget with random ids
    "DSARCH_STATIC": "1",
    # the order of floating-point sums
    "OMP_NUM_THREADS": os.environ.get("DSARCH_THREADS", "1"),
    # threads that wait sleep: spinning stops a busy machine
    "OMP_WAIT_POLICY": "PASSIVE",
    # the order of sets
    "PYTHONHASHSEED": "0",
    # progress bars print rates
    "TQDM_DISABLE": "1",
}

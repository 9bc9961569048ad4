"""Imported once by the server that workers are forked from: the libraries and the frame, no data, no threads."""

import os
import signal

import lpips  # noqa: F401
import scipy.optimize
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401

import ppbench.engine.worker  # noqa: F401

os.environ.pop("PYTHONSAFEPATH", None)  # set for the server alone; what a plug-in starts need not have it
torch.set_num_threads(1)  # a pool of threads would not survive the fork
# Ctrl-C reaches every process of the terminal; it is for the run, which ends its workers itself.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

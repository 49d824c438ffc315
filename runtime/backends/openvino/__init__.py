"""OpenVINO: on a CPU of any maker, and on Intel's GPUs and NPUs."""

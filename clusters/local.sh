#!/usr/bin/env bash
# A one-node cluster on this machine, for `raymlops run --detach` and `ray job submit`. Stop it with `ray stop`.
set -euo pipefail
eval "$(raymlops env)"
# RocksDB lets the control plane survive a crash without Redis; the dashboard stays on loopback.
export RAY_gcs_storage=rocksdb
ray start --head --node-ip-address 127.0.0.1 --dashboard-host 127.0.0.1 --num-cpus "${RAYMLOPS_TEST_CPUS:-4}" "$@"

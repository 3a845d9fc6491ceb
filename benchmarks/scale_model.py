"""A step, its communication and its checkpoint on many GPUs, on paper.

Assumptions, all of which are settings of `Cluster`: GPUs reach a share of their peak; a collective of N
ranks moves (N - 1) / N of its bytes through each rank's slowest link, in a ring, and waits once for each
neighbour; it overlaps with the backward pass or does not, which gives the two ends of the range. Nothing
is assumed of stragglers and of the network's other users.
"""

from dataclasses import dataclass

GRADIENT_BYTES = WEIGHT_BYTES = 2
"""bf16, as communicated."""
CHECKPOINT_BYTES = 14
"""Of a parameter: bf16 weight, fp32 master weight and AdamW's two moments."""
BUCKET_BYTES = 1e9
"""Gradients that DeepSpeed reduces at a time: 5e8 values."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of 8 H100 with one 400 Gbit/s port per GPU, and a parallel file system."""

    peak_flops: float = 989.4e12
    share_of_peak: float = 0.40
    gpus_per_node: int = 8
    node_bandwidth: float = 450e9
    """Bytes/s of one GPU inside a node (NVLink 4, one direction)."""
    network_bandwidth: float = 50e9
    """Bytes/s of one GPU's port."""
    latency: float = 10e-6
    """Seconds that a collective waits per neighbour in the ring of nodes."""
    writer_bandwidth: float = 1e9
    """Bytes/s that one rank writes."""
    storage_bandwidth: float = 50e9
    """Bytes/s that the file system takes from all ranks."""
    hash_bandwidth: float = 1.5e9
    """Bytes/s that one rank reads back and hashes."""


@dataclass(frozen=True, kw_only=True)
class Modelled:
    compute_seconds: float
    communication_seconds: float
    checkpoint_seconds: float
    """That training waits for the files of one."""
    checksum_seconds: float
    """Of those files, while training goes on."""

    @property
    def efficiency(self) -> tuple[float, float]:
        """Share of the compute time in the step: nothing overlapping, and all that can."""
        compute, communication = self.compute_seconds, self.communication_seconds
        return compute / (compute + communication), compute / max(compute, communication)


def modelled(
    stage: int,
    ranks: int,
    *,
    parameters: float,
    flops_per_image: float,
    batch: int,
    micro_batch: int,
    cluster: Cluster,
) -> Modelled:
    """One step of `batch` images on all ranks under ZeRO `stage`."""
    per_rank = batch / ranks
    passes = max(1.0, per_rank / micro_batch)
    gradients, weights = parameters * GRADIENT_BYTES, parameters * WEIGHT_BYTES
    # ZeRO 1 reduces once a step and gathers the new weights; 2 keeps shares of the gradients only, so it
    # reduces in every pass; 3 also gathers the weights for every forward and backward pass.
    moved = {
        1: gradients + weights,
        2: passes * gradients + weights,
        3: passes * (gradients + 2 * weights),
    }[stage]
    is_one_node = ranks <= cluster.gpus_per_node
    bandwidth = cluster.node_bandwidth if is_one_node else cluster.network_bandwidth
    neighbours = ranks if is_one_node else ranks // cluster.gpus_per_node
    collectives = max(1.0, moved / BUCKET_BYTES)
    written = parameters * CHECKPOINT_BYTES
    # Under ZeRO 1 and 2 the first rank writes the weights, beside its share of the rest.
    alone = 0.0 if stage == 3 else weights
    most = alone + (written - alone) / ranks
    return Modelled(
        compute_seconds=per_rank * flops_per_image / (cluster.peak_flops * cluster.share_of_peak),
        communication_seconds=moved * (ranks - 1) / ranks / bandwidth
        + collectives * neighbours * cluster.latency,
        checkpoint_seconds=max(most / cluster.writer_bandwidth, written / cluster.storage_bandwidth),
        checksum_seconds=most / cluster.hash_bandwidth,
    )

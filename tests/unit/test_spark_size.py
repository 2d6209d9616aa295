"""Spark's size follows the cluster's nodes."""

from raymlops.data.spark_size import Node, Shape, shape_for

GIB = 2**30


def test_one_executor_a_node_sized_by_the_smallest() -> None:
    nodes = [Node(cpus=8, memory=32 * GIB), Node(cpus=4, memory=16 * GIB), Node(cpus=0, memory=GIB)]
    assert shape_for(nodes) == Shape(executors=2, cores=4, memory="2457m", most=2)


def test_bounds() -> None:
    assert shape_for([]) == Shape(executors=1, cores=1, memory="1024m")
    assert shape_for([Node(cpus=96, memory=768 * GIB)] * 40) == Shape(executors=16, cores=96, memory="8192m", most=16)
    assert shape_for([Node(cpus=2, memory=GIB)]) == Shape(executors=1, cores=2, memory="1024m")


def test_what_is_read_bounds_the_executors_to_begin_with() -> None:
    nodes = [Node(cpus=4, memory=16 * GIB)] * 8
    sizes = {None: 8, 0: 1, GIB: 1, GIB + 1: 2, 5 * GIB: 5, 500 * GIB: 8}
    assert {size: shape_for(nodes, data_bytes=size).executors for size in sizes} == sizes
    assert shape_for(nodes, data_bytes=0).most == 8
    assert shape_for(nodes[:1], data_bytes=0).most is None

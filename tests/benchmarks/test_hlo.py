"""Reading HLO text, on lines recorded from a TPU v5e executable and shortened; every number is checked by hand."""

import pytest

from benchmarks.hlo import Loop, Program, shape_bytes

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

FileNames
1 "/src/eql_jax/training/train_step.py"
2 "/src/eql_jax/ops/roi_align.py"
3 "/lib/python3.11/site-packages/jax/_src/numpy/indexing.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=80 end_line=80 column=9 end_column=33}
2 {file_name_id=2 function_name_id=1 line=193 end_line=194 column=4 end_column=40}
3 {file_name_id=3 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=2}
4 {file_location_id=3 parent_frame_id=4}

%fused_computation.1 (param_0.1: bf16[1360,32], param_1.2: s32[2048]) -> bf16[2048,32] {
  %param_0.1 = bf16[1360,32]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.2 = s32[2048]{0:T(1024)} parameter(1)
  %custom-call.97 = s32[2048]{0:T(1024)} custom-call(%param_1.2), custom_call_target="AssumeGatherIndicesInBound"
  ROOT %gather.1 = bf16[2048,32]{1,0:T(8,128)(2,1)} gather(%param_0.1, %custom-call.97), offset_dims={1}
}

%region_42.48 (wide.param.500: (s32[], f32[1,512])) -> pred[] {
  %constant.1328 = s32[]{:T(128)} constant(16)
  %wide.param.500 = (s32[]{:T(128)}, f32[1,512]{1,0:T(1,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %get-tuple-element.5966 = s32[]{:T(128)} get-tuple-element(%wide.param.500), index=0
  ROOT %lt.969 = pred[]{:T(512)} compare(%get-tuple-element.5966, %constant.1328), direction=LT
}

%region_41.47 (wide.param.501: (s32[], f32[1,512])) -> (s32[], f32[1,512]) {
  %wide.param.501 = (s32[]{:T(128)}, f32[1,512]{1,0:T(1,128)}) parameter(0)
  %get-tuple-element.1 = f32[1,512]{1,0:T(1,128)} get-tuple-element(%wide.param.501), index=1
  %fusion.2 = f32[1,512]{1,0:T(1,128)} fusion(%get-tuple-element.1), kind=kLoop, calls=%fused_computation.9, metadata={op_name="jit(step)/while/body/mul" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"1825","iteration_bounds":["1"]}}
  ROOT %tuple.5 = (s32[]{:T(128)}, f32[1,512]{1,0:T(1,128)}) tuple(%get-tuple-element.1, %fusion.2)
}

%region_26.30 (param.38: (s32[], s32[])) -> pred[] {
  %param.38 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.7 = s32[]{:T(128)} get-tuple-element(%param.38), index=0
  %get-tuple-element.8 = s32[]{:T(128)} get-tuple-element(%param.38), index=1
  ROOT %lt.946 = pred[]{:T(512)} compare(%get-tuple-element.7, %get-tuple-element.8), direction=LT
}

%region_25.29 (param.39: (s32[], s32[])) -> (s32[], s32[]) {
  %param.39 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %add.3 = s32[1,300]{1,0} add(%param.39, %param.39), backend_config={"window_config":{"estimated_cycles":"40"}}
  ROOT %tuple.6 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%add.3, %add.3)
}

ENTRY %main.207_spmd (param.66: s32[], param.67: f32[1,1,8,8]) -> (s32[], f32[1,4092]) {
  %param.66 = s32[]{:T(128)} parameter(0)
  %param.67 = f32[1,1,8,8]{3,2,1,0:T(8,128)} parameter(1)
  %all-reduce.119 = (s32[]{:T(128)}, bf16[3,3,16,16]{3,2,1,0:T(8,128)(2,1)S(1)}) all-reduce(%param.66, %param.67), channel_id=5, replica_groups={{0,1}}, to_apply=%region_43.49
  %all-gather-start.1 = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%param.67), channel_id=6, dimensions={0}
  %all-gather-done.1 = f32[8,8]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.7 = f32[10]{0} all-reduce(%param.67), channel_id=9, to_apply=%region_43.49
  %copy-start.10 = (s32[2,8]{1,0}, s32[2,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%param.66)
  %copy-done.10 = s32[2,8]{1,0} copy-done(%copy-start.10)
  %custom-call.3 = f32[3,100]{1,0} custom-call(%param.67), custom_call_target="ConcatBitcast"
  %fusion.gather = bf16[2048,32]{1,0:T(8,128)(2,1)} fusion(%param.67, %param.66), kind=kCustom, calls=%fused_computation.1, metadata={op_name="jit(step)/gather" stack_frame_id=4}
  %while.245 = (s32[]{:T(128)}, f32[1,512]{1,0:T(1,128)}) while(%param.66), condition=%region_42.48, body=%region_41.47, metadata={op_name="jit(step)/while" stack_frame_id=2}
  %while.238 = (s32[]{:T(128)}, s32[]{:T(128)}) while(%param.66), condition=%region_26.30, body=%region_25.29, metadata={op_name="jit(step)/nms/while"}
  %sort.1 = (f32[1,4092]{1,0:T(1,128)}, s32[1,4092]{1,0:T(1,128)S(1)}) sort(%param.67, %param.66), dimensions={1}, to_apply=%region_54.60
  %convolution.1 = f32[1,8]{1,0} convolution(%param.67, %param.67), metadata={op_name="jit(step)/conv" source_file="/src/eql_jax/ops/conv.py" source_line=172}, backend_config={"window_config":{"estimated_cycles":"20000"}}
  ROOT %tuple.9 = (s32[]{:T(128)}, f32[1,4092]{1,0:T(1,128)}) tuple(%param.66, %sort.1)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return Program(PROGRAM)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f32[]", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("(f32[2,3]{1,0}, s32[], /*index=2*/pred[7])", 24 + 4 + 7),
        ("u8[0,5]", 0),
        ("s4[6]", 3),
        ("f8e4m3fn[5]", 5),
        ("c64[2]", 16),
        ("token[]", 0),
    ],
)
def test_bytes_of_types(text, expected):
    assert shape_bytes(text) == expected


def test_collectives_count_once_with_the_bytes_of_their_results(program):
    # 4 + 3*3*16*16*2 of the tuple and 10*4; the start of the gather is no second one.
    assert program.collectives() == {
        "all-reduce": {"count": 2, "bytes": 4 + 4608 + 40},
        "all-gather": {"count": 1, "bytes": 256},
    }


def test_pieces_of_a_collective_with_one_channel_are_one():
    piece = "  %all-reduce.{} = f32[10]{{0}} all-reduce(%p), channel_id=3, to_apply=%add\n"
    head = "(p: f32[10]) -> f32[10] {\n"
    text = f"%a {head}{piece.format(1)}}}\n\nENTRY %b {head}{piece.format(2)}}}\n"
    assert Program(text).collectives() == {"all-reduce": {"count": 1, "bytes": 40}}


def test_rounds_of_loops(program):
    assert program.loops() == [
        Loop("while.245", 16, "eql_jax/ops/roi_align.py:193"),
        Loop("while.238", None, "jit(step)/nms/while"),
    ]


def test_rounds_that_the_compiler_notes():
    line = '  %while.1 = (s32[]) while(%t), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"7"}}'
    program = Program(f"ENTRY %main (p: s32[]) -> s32[] {{\n{line}\n}}\n")
    assert [loop.trips for loop in program.loops()] == [7]


def test_operations_with_an_estimate(program):
    """A body counts as often as its loop runs, once where nobody knows; names of memory and ends of pairs are free."""
    found = [(o.name, o.kind, o.times, o.cycles, o.where) for o in program.operations() if o.cycles is not None]
    assert found == [
        ("fusion.2", "fusion", 16, 29200, "eql_jax/ops/roi_align.py:193"),  # the frame of JAX's own file is passed over
        ("convolution.1", "convolution", 1, 20000, "eql_jax/ops/conv.py:172"),
        ("add.3", "add", 1, 40, ""),
    ]


def test_operations_without_an_estimate(program):
    found = [(o.name, o.kind, o.times, o.bytes) for o in program.operations() if o.cycles is None]
    assert found == [
        ("fusion.gather", "fusion(gather)", 1, 2048 * 32 * 2),
        ("sort.1", "sort", 1, 4092 * 8),
        ("all-reduce.119", "all-reduce", 1, 4612),
        ("all-gather-done.1", "all-gather-done", 1, 256),
        ("copy-done.10", "copy-done", 1, 64),
        ("all-reduce.7", "all-reduce", 1, 40),
    ]


def test_both_branches_of_a_conditional_are_visited():
    add = '  %add.{} = f32[4]{{0}} add(%p, %p), backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}\n'
    text = (
        f"%one (p: f32[4]) -> f32[4] {{\n{add.format(1, 5)}}}\n\n"
        f"%two (p: f32[4]) -> f32[4] {{\n{add.format(2, 6)}}}\n\n"
        "ENTRY %main (p: f32[4]) -> f32[4] {\n"
        "  %c.1 = f32[4]{0} conditional(%i, %p, %p), branch_computations={%one, %two}\n"
        "  %c.2 = f32[4]{0} conditional(%i, %p, %p), true_computation=%one, false_computation=%two, metadata={}\n}\n"
    )
    assert [o.cycles for o in Program(text).operations()] == [6, 6, 5, 5]


def test_text_without_a_programme():
    program = Program("")
    assert program.operations() == [] and program.loops() == [] and program.collectives() == {}

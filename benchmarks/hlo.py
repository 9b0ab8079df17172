"""Reading a compiled programme's HLO text: collectives, loops, and what the TPU compiler expects operations to cost.

The text of a TPU executable has `estimated_cycles` in the backend_config of most operations. Gathers, scatters, sorts,
collectives and asynchronous copies have none; they are listed apart, with the bytes they write.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Operations that do nothing at run time, or stand for others that are looked at by themselves.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "async-update opt-barrier add-dependency".split()
)
_FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer")  # custom calls that give memory another name
_COSTLY_KINDS = ("scatter", "gather", "sort", "dynamic-update-slice", "dynamic-slice", "convolution", "dot")
_DTYPE_BITS = {"pred": 8, "token": 0, "bf16": 16}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: its name, the text of its type, the operation, and the line."""

    name: str
    type: str
    opcode: str
    line: str

    @property
    def bytes(self) -> int:
        """Bytes of the result, without the padding of its layout."""
        return shape_bytes(self.type)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution, None where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else None

    @property
    def target(self) -> str:
        """What a custom call calls, '' for other operations."""
        found = re.search(r'custom_call_target="([^"]*)"', self.line) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    def called(self, attribute: str) -> str | None:
        """The computation named by an attribute such as 'calls' or 'body'."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.line)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop. trips: None when the number of rounds depends on the data. where: the source line."""

    name: str
    trips: int | None
    where: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that runs `times` times in the programme, as far as loops have a fixed number of rounds.

    kind: its opcode; 'fusion(gather)' of a fusion with such a part, 'custom-call(TopK)' with the target. cycles: of all
    rounds together, None without an estimate. bytes: of its results in all rounds.
    """

    name: str
    kind: str
    times: int
    cycles: int | None
    bytes: int
    op_name: str
    where: str


def shape_bytes(text: str) -> int:
    """Bytes of all arrays in an HLO type, '(f32[2,3]{1,0}, s32[])' -> 28."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]", text):
        bits = _DTYPE_BITS.get(dtype)
        if bits is None:
            digits = re.search(r"\d+", dtype)
            bits = int(digits[0]) if digits else 0
        count = 1
        for n in dims.split(","):
            count *= int(n) if n else 1
        total += count * bits
    return total // 8


class Program:
    """The computations of an HLO module, {name: [Instruction]}, with the name of the entry."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._tables: dict[str, dict[int, str]] = defaultdict(dict)
        table, current = "", None
        for line in text.splitlines():
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = line
            elif table and (found := re.match(r"(\d+) (.*)", line)):
                self._tables[table][int(found[1])] = found[2]
            elif line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                table, current = "", self.computations.setdefault(found[2], [])
                self.entry = found[2] if found[1] else self.entry
            elif current is not None and (instruction := _parse(line)):
                current.append(instruction)

    def instructions(self) -> Iterator[Instruction]:
        """All of them, also those inside fusions."""
        for instructions in self.computations.values():
            yield from instructions

    # ------------------------------------------------------------------ collectives
    def collectives(self) -> dict[str, dict[str, int]]:
        """{kind: {'count', 'bytes'}} of the programme's collectives; bytes of the results on one device.

        Each counts once, also in a loop; pairs of start and done, and pieces with the same channel, are one.
        """
        found: dict[str, dict[str, int]] = {}
        seen = set()
        for i in self.instructions():
            kind = i.opcode.removesuffix("-done")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"\bchannel_id=(\d+)", i.line)
            key = (kind, channel[1]) if channel else (kind, i.name)
            if key in seen:
                continue
            seen.add(key)
            entry = found.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += i.bytes
        return found

    # ------------------------------------------------------------------ costs
    def loops(self) -> list[Loop]:
        """The while loops, in the order of the text."""
        return [
            Loop(i.name, self.trips(i), self.where(i) or _op_name(i))
            for i in self.instructions()
            if i.opcode == "while"
        ]

    def trips(self, loop: Instruction) -> int | None:
        """Rounds of a while loop: as the compiler notes, or a counter below a constant, taken to go up from 0 by 1."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line)
        if noted:
            return int(noted[1])
        condition = {i.name: i for i in self.computations.get(loop.called("condition") or "", [])}
        root = next((i for i in condition.values() if i.line.lstrip().startswith("ROOT ")), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.line:
            return None
        operands = _operands(root)
        limit = condition.get(operands[-1]) if operands else None
        value = re.search(r"constant\((\d+)\)", limit.line) if limit else None
        return int(value[1]) if value else None

    def operations(self) -> list[Operation]:
        """What runs, costliest first; bodies of loops count as often as they are known to run, else once."""
        found: list[Operation] = []
        self._visit(self.entry, 1, found)
        return sorted(found, key=lambda o: (-(o.cycles or 0), -o.bytes))

    def _visit(self, computation: str, times: int, found: list[Operation]) -> None:
        for i in self.computations.get(computation, ()):
            if i.opcode == "while":
                self._visit(i.called("body") or "", times * (self.trips(i) or 1), found)
            elif i.opcode == "call":
                self._visit(i.called("to_apply") or "", times, found)
            elif i.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", i.line)
                names = (
                    branches[1].split(",") if branches else re.findall(r"(?:true|false)_computation=(\S+?),", i.line)
                )
                for name in names:
                    self._visit(name.strip().lstrip("%"), times, found)
            # Of a pair of start and done the second has the type of the result.
            elif i.opcode not in _FREE and not i.opcode.endswith("-start") and i.target not in _FREE_TARGETS:
                cycles = i.cycles
                found.append(
                    Operation(
                        i.name,
                        self._kind(i),
                        times,
                        None if cycles is None else cycles * times,
                        i.bytes * times,
                        _op_name(i),
                        self.where(i),
                    )
                )

    def _kind(self, i: Instruction) -> str:
        if i.target:
            return f"{i.opcode}({i.target})"
        inside = self._opcodes_inside(i)
        kind = next((k for k in _COSTLY_KINDS if k in inside), None)
        return f"{i.opcode}({kind})" if kind else i.opcode

    def _opcodes_inside(self, i: Instruction) -> set[str]:
        called = i.called("calls")
        found = set()
        for inner in self.computations.get(called or "", ()):
            found |= {inner.opcode} | self._opcodes_inside(inner)
        return found

    # ------------------------------------------------------------------ source
    def where(self, i: Instruction) -> str:
        """'eql_jax/ops/nms.py:80', the innermost line of this package that an operation comes from, '' if none."""
        plain = re.search(r'source_file="([^"]*)" source_line=(\d+)', i.line)
        if plain and "eql_jax/" in plain[1]:
            return f"{_short(plain[1])}:{plain[2]}"
        frame = re.search(r"stack_frame_id=(\d+)", i.line)
        number = int(frame[1]) if frame else 0
        while number:
            fields = _fields(self._tables["StackFrames"].get(number, ""))
            location = _fields(self._tables["FileLocations"].get(fields.get("file_location_id", 0), ""))
            name = self._tables["FileNames"].get(location.get("file_name_id", 0), "").strip('"')
            if "eql_jax/" in name:
                return f"{_short(name)}:{location.get('line', 0)}"
            # Numbers of parents are smaller; that of an outermost frame is its own or none.
            parent = fields.get("parent_frame_id", 0)
            number = parent if parent < number else 0
        return ""


def _parse(line: str) -> Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    start = end = found.end()
    depth = 0
    while end < len(line) and (depth or line[end] != " "):  # a tuple's type has spaces inside its brackets
        depth += (line[end] in "({[") - (line[end] in ")}]")
        end += 1
    opcode = re.match(r" ([a-z][\w\-]*)\(", line[end:])
    return Instruction(found[1], line[start:end], opcode[1], line) if opcode else None


def _operands(i: Instruction) -> list[str]:
    inside = i.line[i.line.index(f" {i.opcode}(") + len(i.opcode) + 2 :].split(")")[0]
    return re.findall(r"%([\w.\-]+)", inside) or [w.split()[-1] for w in inside.split(",") if w.strip()]


def _op_name(i: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', i.line)
    return found[1] if found else ""


def _fields(text: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", text)}


def _short(path: str) -> str:
    return path[path.rindex("eql_jax/") :]

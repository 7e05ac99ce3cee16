"""What every export format must hold (house.md 2.5: one contract per extension point)."""

from audit.export import Format, export
from audit.reader import Line
from audit.record import parse
from tests.kit.chains import everyday


class ExportContract:
    """Subclass it and set `form`."""

    form: Format

    def lines(self) -> list[Line]:
        return [Line(parse(raw[:-1]), raw) for raw in everyday()]

    def test_the_name_is_one_word(self) -> None:
        assert self.form.name.isalnum()
        assert self.form.name.islower()

    def test_rows_are_streamed_one_by_one(self) -> None:
        taken = []

        def source() -> list[Line]:
            return self.lines()

        rows = export((taken.append(line) or line for line in source()), self.form)  # type: ignore[func-returns-value]
        next(rows)
        assert taken == []
        next(rows)
        assert len(taken) == 1

    def test_each_record_becomes_one_row_that_ends_a_line(self) -> None:
        for line in self.lines():
            row = self.form.row(line)
            assert row.endswith(b"\n")
            assert row == self.form.row(line)

    def test_no_record_gives_the_head_alone(self) -> None:
        assert b"".join(export([], self.form)) == self.form.head()

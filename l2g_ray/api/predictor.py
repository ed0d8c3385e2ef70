"""A finished run's model as an object: predictions, embeddings, explanations, effects of variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from l2g_ray.api.inputs import Sequences, as_input
from l2g_ray.errors import UserError, nearest
from l2g_ray.monitor.bars import Bar
from l2g_ray.predict import Predictor as StoredPredictor
from l2g_ray.predict import iter_predictions

if TYPE_CHECKING:
    import numpy as np

    from l2g_ray.explain.page import Explained
    from l2g_ray.explain.vectors import SequenceEmbedder

# Options of `explain` under their names on the command line, where the request has another.
_EXPLAIN_OPTIONS = {"references": "n_references", "motifs": "with_motifs", "database": "databases", "target": "output"}


class Predictor:
    """A trained model. Get one by `load` or `Run.best`.

    Parameters
    ----------
    model : l2g_ray.predict.Predictor
        The stored `l2g_ray.predict.Predictor`, kept as the attribute `model`. Its own `model` is the PyTorch module.
    batch_size : int, optional
        Sequences per batch: 256 by default, halved until a batch fits into memory.

    Examples
    --------
    >>> import l2g_ray as l2g
    >>> predictor = l2g.load("runs/toy")
    >>> predictor
    Predictor(task='planted', kind='binary', labels=('0', '1'), arm='ensemble', length_bp=40)
    """

    def __init__(self, model: StoredPredictor, batch_size: int | None = None) -> None:
        self.model = model
        self._batch_size = batch_size
        self._embedders: dict[str | None, SequenceEmbedder] = {}

    @property
    def task(self) -> str:
        """The task's name."""
        return self.model.task.name

    @property
    def kind(self) -> str:
        """The task's kind: binary, multiclass, multilabel or regression."""
        return self.model.task.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes or outputs, in order."""
        return tuple(self.model.task.labels)

    @property
    def arm(self) -> str:
        """Which of the run's models it is."""
        return self.model.arm.name

    @property
    def length_bp(self) -> int:
        """The longest sequence that the model reads."""
        return self.model.length_bp

    def __repr__(self) -> str:
        shown = self.labels if len(self.labels) <= 4 else f"<{len(self.labels)} labels>"
        return (
            f"Predictor(task={self.task!r}, kind={self.kind!r}, labels={shown}, arm={self.arm!r}, "
            f"length_bp={self.length_bp})"
        )

    def predict(
        self,
        sequences: Sequences,
        *,
        sequence_column: str | None = None,
        keep_columns: bool = False,
        quiet: bool = False,
    ) -> pd.DataFrame:
        """Predict sequences.

        Parameters
        ----------
        sequences : list of str, Series, array, table, str or Path
            Strings; a table (DataFrame, Arrow table, mapping of columns) with a column `sequence`; or the path of a
            FASTA, CSV, TSV or Parquet file. In a table a column `id` names the rows.
        sequence_column : str, optional
            Column that holds the sequences, where it has another name.
        keep_columns : bool, default False
            Also return the columns of the table or file, before the predictions.
        quiet : bool, default False
            Show no progress.

        Returns
        -------
        DataFrame
            n rows in the order given: `id` where the input has one, then `prediction` and `probability_<label>`; for
            regression `prediction_<output>` in the labels' units. Rows of a DataFrame keep their index. `attrs` name
            the task, the arm and the model.

        Raises
        ------
        UserError
            If `sequences` is one string, or a sequence is empty, too long or faulty. The message names the row.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> predictor = l2g.load("runs/toy")
        >>> predictor.predict(["ACGTACGTAC", "TTGACTCATT"]).columns.tolist()
        ['prediction', 'probability_0', 'probability_1']
        """
        source = as_input(sequences, sequence_column or self.model.task.sequence_column)
        total = len(source) if isinstance(source, pa.Table) else None
        with Bar("predicting", total, quiet=quiet) as bar:
            tables = iter_predictions(
                self.model,
                source,
                sequence_column=sequence_column,
                keep_columns=keep_columns,
                progress=bar.update,
            )
            frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return self._finish(frame, sequences, source)

    def embed(
        self,
        sequences: Sequences,
        *,
        layer: str | None = None,
        per_token: bool = False,
        sequence_column: str | None = None,
        quiet: bool = False,
    ) -> np.ndarray:
        """Embed sequences, each on the strand given.

        An ensemble is represented by the one of its arms l2g and embedder_only with the larger weight, an arm of several
        fold models by the first of them.

        Parameters
        ----------
        sequences : list of str, Series, array, table, str or Path
            As in `predict`.
        layer : str, optional
            `backbone` (features of the CNN), `tokens` (of the embedder) or `language_model` (the whole model). By default
            the last that the arm has.
        per_token : bool, default False
            Return each position instead of the mean over positions.
        sequence_column : str, optional
            As in `predict`.
        quiet : bool, default False
            Show no progress.

        Returns
        -------
        ndarray
            float32 (n, width); with `per_token` (n, positions, width), NaN beyond the end of a shorter sequence.

        Raises
        ------
        UserError
            If the arm has no embeddings or no such layer; otherwise as `predict`.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> predictor = l2g.load("runs/toy")
        >>> predictor.embed(["ACGTACGTAC", "TTGACTCATT"], layer="tokens").shape
        (2, 16)
        """
        from l2g_ray.explain.vectors import SequenceEmbedder

        if layer not in self._embedders:
            self._embedders[layer] = SequenceEmbedder(self.model.arm, layer, self.model.device, self._batch_size)
        source = as_input(sequences, sequence_column or self.model.task.sequence_column)
        total = len(source) if isinstance(source, pa.Table) else None
        with Bar("embedding", total, quiet=quiet) as bar:
            return self._embedders[layer].embed(
                source, per_token=per_token, sequence_column=sequence_column, progress=bar.update
            )

    def explain(
        self,
        sequences: Sequences | None = None,
        *,
        target: str | None = None,
        out: str | Path | None = None,
        motifs: bool = True,
        quiet: bool = False,
        **options: Any,
    ) -> Explained:
        """Explain predictions: contributions of bases, and motifs.

        An ensemble is represented by the arm with the largest weight that has contributions.

        Parameters
        ----------
        sequences : list of str, Series, array, table, str or Path, optional
            As in `predict`. By default validation rows of the run.
        target : str, optional
            Class or output to explain, or the start of its name. By default the second class of a binary task,
            otherwise all of up to four.
        out : str or Path, optional
            Folder for the page, tables and logos. Nothing is written without one.
        motifs : bool, default True
            Search motifs by TF-MoDISco.
        quiet : bool, default False
            Show no progress.
        **options : Any
            The other options of `l2g-ray explain` under their names, such as `top=100`, `method="deeplift"`,
            `database=["jaspar:insects"]`, `rc_average=True`.

        Returns
        -------
        Explained
            `motifs` and `sequences` (DataFrames), `contributions` (arrays (n, length_bp) by output), and `page` (Path).

        Raises
        ------
        UserError
            If an option is unknown or the model has no contributions of bases; otherwise as `predict`.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> predictor = l2g.load("runs/toy")
        >>> found = predictor.explain(["ACGTACGTAC" * 4], motifs=False, references=2)
        >>> found.contributions["1"].shape
        (1, 40)
        """
        from l2g_ray.explain.page import explain
        from l2g_ray.explain.request import ExplainRequest

        given = {"target": target, "motifs": motifs, **options}
        named = {_EXPLAIN_OPTIONS.get(name, name): value for name, value in given.items()}
        own = {field.name for field in fields(ExplainRequest)} - {"arm", "writes", "device"}
        public = {field: name for name, field in _EXPLAIN_OPTIONS.items()}
        known = {public.get(field, field) for field in own}
        for name in given:
            if name not in known:
                hint = f"did you mean '{public[name]}'?" if name in public else nearest(name, known)
                raise UserError(f"explain: no option '{name}' ({hint})")
        if isinstance(databases := named.get("databases"), str):
            named["databases"] = (databases,)
        column = named.get("sequence_column") or self.model.task.sequence_column
        request = ExplainRequest(
            self.model.arm,
            sequences=None if sequences is None else as_input(sequences, column),
            out=None if out is None else Path(out),
            writes=out is not None,
            device=str(self.model.device),
            **{"batch_size": self._batch_size, **named},
        )
        with Bar("explaining", quiet=quiet) as bar:
            return explain(request, bar.show)

    def variants(
        self,
        vcf: str | Path | None = None,
        genome: str | Path | None = None,
        *,
        pairs: str | Path | pd.DataFrame | pa.Table | Mapping[str, Any] | None = None,
        on_mismatch: str = "error",
        at_edge: str = "pad",
        strand: str = "auto",
        window_bp: int | None = None,
        quiet: bool = False,
    ) -> pd.DataFrame:
        """Score both alleles of variants, and their difference.

        Parameters
        ----------
        vcf : str or Path, optional
            File of variants: VCF, plain or compressed.
        genome : str or Path, optional
            FASTA of the genome that the variants were called on.
        pairs : table or str or Path, optional
            Instead of both, a table or file with the columns `ref` and `alt`, both whole sequences.
        on_mismatch : str, default "error"
            For a row that does not fit the genome: `error` raises, `skip` leaves it without scores, `swap` scores it
            where the genome has the ALT.
        at_edge : str, default "pad"
            For a window beyond a contig's edge: `pad` reads N there, `skip` leaves the row without scores.
        strand : str, default "auto"
            `+`, `-`, `both` (their mean), or `auto`: both, unless the task belongs to one strand.
        window_bp : int, optional
            Length of the window. By default the model's.
        quiet : bool, default False
            Show no progress.

        Returns
        -------
        DataFrame
            A row for each allele or pair: `ref_<label>`, `alt_<label>`, `diff_<label>` and, of probabilities,
            `log_odds_diff_<label>` (natural logarithm). `attrs` name the model, and `attrs["notes"]` what was left out.

        Raises
        ------
        UserError
            If options do not go together or a row is faulty.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> predictor = l2g.load("runs/toy")
        >>> pairs = {"ref": ["ACGTACGTAC"], "alt": ["ACGTTCGTAC"]}
        >>> predictor.variants(pairs=pairs).columns.tolist()
        ['ref_1', 'alt_1', 'diff_1', 'log_odds_diff_1']
        """
        from l2g_ray.explain.effects import score_variants

        tables: list[pa.Table] = []
        source = None if pairs is None else as_input(pairs, "ref")
        with Bar("scoring", quiet=quiet) as bar:
            found = score_variants(
                self.model,
                vcf=None if vcf is None else Path(vcf),
                genome=None if genome is None else Path(genome),
                pairs=source,
                collect=tables.append,
                on_mismatch=on_mismatch,
                at_edge=at_edge,
                strand=strand,
                window_bp=window_bp,
                progress=bar.update,
            )
        frame = self._finish(pa.concat_tables(tables).to_pandas(), pairs, source)
        frame.attrs |= {"strand": found.strand, "notes": [*found.warnings, *found.notes]}
        return frame

    def mutate(
        self,
        sequence: str,
        *,
        target: str | None = None,
        region: str | None = None,
        strand: str = "auto",
        quiet: bool = False,
    ) -> pd.DataFrame:
        """Change every base of one sequence into every other, and score each change.

        Parameters
        ----------
        sequence : str
            The sequence itself.
        target : str, optional
            Class or output. By default the second class of a binary task, otherwise all.
        region : str, optional
            Change only positions `"START-END"`, counted from 1, both included.
        strand : str, default "auto"
            `+`, `both` or `auto`, as in `variants`.
        quiet : bool, default False
            Show no progress.

        Returns
        -------
        DataFrame
            A row for each output and position: `output`, `position` (from 1), `base`, and for A, C, G and T the score
            of the changed sequence minus that of the given one, in log-odds, for regression in the labels' units.

        Raises
        ------
        UserError
            If the output is unknown, the region is outside of the sequence, or the sequence is faulty.

        Examples
        --------
        >>> import l2g_ray as l2g
        >>> predictor = l2g.load("runs/toy")
        >>> predictor.mutate("ACGTACGTAC", region="3-4").columns.tolist()
        ['output', 'position', 'base', 'A', 'C', 'G', 'T']
        """
        from l2g_ray.explain.mutagenesis import choose_outputs, mutate_sequence, parse_region

        if not isinstance(sequence, str):
            raise UserError(f"mutate: {type(sequence).__name__} is no sequence; give one string")
        if strand not in ("auto", "+", "both"):
            raise UserError(f"strand '{strand}': choose one of auto, +, both")
        clean = self.model.clean(pa.array([sequence], pa.large_string()), "the sequence")[0].as_py()
        outputs = choose_outputs(self.model.task, target, "target")
        with Bar("scoring mutants", quiet=quiet) as bar:
            mutants = mutate_sequence(
                self.model,
                clean,
                outputs,
                region=parse_region(region, len(clean)),
                both_strands=None if strand == "auto" else strand == "both",
                progress=lambda done, total: bar.show("scoring mutants", done, total),
            )
        frame = pd.concat([found.table().assign(output=found.output) for found in mutants], ignore_index=True)
        frame.insert(0, "output", frame.pop("output"))
        return self._finish(frame)

    def _finish(self, frame: pd.DataFrame, given: object = None, read: object = None) -> pd.DataFrame:
        """Return the frame with the index of a `given` DataFrame, without ids that what was `read` has not, and with
        facts.
        """
        if isinstance(read, pa.Table) and "id" not in read.column_names:
            frame = frame.drop(columns="id")
        if isinstance(given, pd.DataFrame):
            frame.index = given.index
        frame.attrs |= self.model.facts()
        return frame

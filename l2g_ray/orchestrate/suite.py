"""A suite: many tasks at once on one Ray cluster, from files to leaderboard, report and MLflow."""

from __future__ import annotations

import _thread
import contextlib
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from l2g_ray.atomic import write_json
from l2g_ray.config import Settings, resolve_precision
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.errors import UserError
from l2g_ray.extras import need_for
from l2g_ray.models.locate import locate
from l2g_ray.monitor.environment import describe_environment
from l2g_ray.monitor.events import Event, Recorded, SlotLog, SlotTimes, SlotUse
from l2g_ray.monitor.outline import Step
from l2g_ray.monitor.progress import Progress, ReadingProgress, describe_event
from l2g_ray.monitor.status import SUITE_FILE, StatusWriter
from l2g_ray.orchestrate.cluster import (
    ClusterWatch,
    Slots,
    SuiteMetrics,
    SuiteStopped,
    connect,
    describe_start,
    measure_slots,
    name_interrupt,
    read_nodes,
    sigterm_interrupts,
    wait_for_room,
)
from l2g_ray.orchestrate.identity import (
    SuiteIdentity,
    SuiteMeta,
    check_writable,
    identify_suite,
    name_store,
    prepare_task,
    read_finished,
    refuse_replacement,
    resolve_task,
)
from l2g_ray.orchestrate.outcome import assemble_row, write_task_folder
from l2g_ray.orchestrate.outline import outline_task
from l2g_ray.orchestrate.precision import find_cpu_precision
from l2g_ray.orchestrate.ray_private import find_dashboard
from l2g_ray.orchestrate.reporting import count_parameters, log_if_gone, read_details, write_events
from l2g_ray.orchestrate.spec import Site, TaskSpec
from l2g_ray.places import show_command
from l2g_ray.plan.rows import rows_of_manifest
from l2g_ray.redaction import clean, redact
from l2g_ray.request import SuiteRequest, SuiteResult, check_name
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.report import TaskDetails, write_report
from l2g_ray.results.rows import describe_result
from l2g_ray.results.schema import Board
from l2g_ray.store.guard import StorageWatch, persist
from l2g_ray.store.locks import hold_suite
from l2g_ray.store.shared import lease, open_store, pull_finished, push
from l2g_ray.tracking.record import Recorder
from l2g_ray.tracking.store import refuse_file_store, resolve_uri

POLL_S = 0.3
PIPELINE_RETRIES = 3  # for a lost process or machine; an error of its own is not tried again


def run_suite(request: SuiteRequest, console: Console) -> SuiteResult:
    """Run all tasks side by side. What is finished is not run again; a task that fails leaves the others running.

    Raises
    ------
    UserError : anything that can be known before training starts.
    SuiteStopped : interrupted by Ctrl-C or SIGTERM, after all has been put in order.
    """
    begun = time.monotonic()
    check_name(request.name)
    settings = {task.name: resolve_task(request, task) for task in request.tasks}
    for one in settings.values():
        need_for(one)
    for name in dict.fromkeys(s.model.language_model for s in settings.values()):
        locate(name)
    folder = request.out / request.name
    check_writable(folder)

    def say(text: str) -> None:
        console.print(escape(redact(text)), highlight=False, soft_wrap=True)

    def give_way() -> None:
        say(f"{request.name}: another driver has taken this suite over while this one was disconnected; this one ends")
        _thread.interrupt_main()

    stored = request.remote / request.name if request.remote else None
    with contextlib.ExitStack() as held:
        held.enter_context(hold_suite(request.out, request.name, say))
        if request.remote is not None:
            held.enter_context(lease(request.remote, request.name, say, give_way))
            pull_finished(request.remote / request.name, folder)
        prepared = {task.name: prepare_task(request, task, settings[task.name], console) for task in request.tasks}
        identity = identify_suite(request, settings, prepared)
        if (finished := read_finished(folder, identity.key)) is not None:
            meta, board = finished
            uri, relogged = log_if_gone(request, settings, prepared, folder, meta, board, say)
            took_s = time.monotonic() - begun
            return SuiteResult(board, folder, redact(uri), False, took_s, stored=stored, relogged=relogged)
        refuse_replacement(request, identity)
        return _Run(request, settings, prepared, folder, identity, console, begun).run()


class _Run:
    """One suite while it runs: tasks as Ray tasks, their events to the progress table and to MLflow."""

    def __init__(
        self,
        request: SuiteRequest,
        settings: dict[str, Settings],
        prepared: dict[str, PreparedTask],
        folder: Path,
        identity: SuiteIdentity,
        console: Console,
        begun: float,
    ) -> None:
        self.request, self.settings, self.prepared = request, settings, prepared
        self.folder, self.console, self.begun = folder, console, begun
        self.identity, self.key = identity, identity.key
        # Tune's own files, a folder a process. Ray pickles its state there: nobody else may write it, and nothing that
        # was there before is read.
        self.scratch = (request.out / "tune" / f"{request.name}-{uuid.uuid4().hex[:8]}").resolve()
        self.wait_s = max((s.cluster.storage_wait_s for s in settings.values()), default=0.0)
        self.remote_stages = str(request.remote / "stages") if request.remote else None
        self.store = open_store(request.out.resolve() / "stages", self.remote_stages, self.wait_s)
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.rows: dict[str, dict[str, Any]] = {}
        self.details: dict[str, TaskDetails] = {}
        self.events: list[Recorded] = []  # for a store that shall have them later
        self.failures: dict[str, str] = {}
        self.use: SlotUse | None = None

    def run(self) -> SuiteResult:
        """Connect, run, write; an interrupt marks the MLflow runs as killed and leaves all finished stages in place."""
        request = self.request
        self.console.print(describe_start(), highlight=False, soft_wrap=True)
        ray = connect(request.verbose, request.cpus)
        with sigterm_interrupts():
            return self._run_connected(ray)

    def _run_connected(self, ray: Any) -> SuiteResult:
        request = self.request
        slots = self._slots(ray)
        refuse_file_store(resolve_uri(None, request.out), sum(node["Alive"] for node in ray.nodes()))
        self.environment = describe_environment(ray)
        recorder = Recorder(request, self.key, self.settings, self.environment, self.folder, self._say)
        self._write_suite_file("running", recorder.uri)
        self.console.print(
            f"[bold]{request.name}[/bold]: {len(request.tasks)} task{'s' if len(request.tasks) > 1 else ''}, "
            f"preset {request.preset}, {slots.count} trial slot{'s' if slots.count > 1 else ''}; "
            f"MLflow store {redact(recorder.uri)}",
            highlight=False,
            soft_wrap=True,
        )
        for name, task in self.prepared.items():
            for warning in task.manifest["warnings"]:
                self.console.print(f"[yellow]{name}: {escape(warning)}[/yellow]", highlight=False, soft_wrap=True)
            if found := [f for f in task.manifest["check"]["findings"] if f["level"] == "warning"]:
                self.console.print(
                    f"[yellow]{name}: the data check has {len(found)} warning{'s' if len(found) > 1 else ''}: "
                    f"{escape(show_command('data', 'inspect', task.folder))}[/yellow]",
                    highlight=False,
                    soft_wrap=True,
                )
        links = self._show_links(ray, recorder)
        self.status = StatusWriter(self.folder, list(self.prepared), links)
        try:
            with ClusterWatch(ray.get_runtime_context().gcs_address):
                self._run_tasks(ray, slots, recorder)
            board = self._finish(recorder)
        except BaseException as error:
            self._stop(error, recorder)
            raise
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        took_s = time.monotonic() - self.begun
        stored = request.remote / request.name if request.remote else None
        return SuiteResult(board, self.folder, redact(recorder.uri), True, took_s, self.failures, stored)

    def _say(self, sentence: str) -> None:
        self.console.print(f"[yellow]{escape(redact(sentence))}[/yellow]", highlight=False, soft_wrap=True)

    def _make_scratch(self) -> None:
        tune = self.scratch.parent
        tune.mkdir(parents=True, exist_ok=True)
        # What a killed driver of this suite left; the suite's lock says that none is alive.
        for stale in tune.glob(f"{self.request.name}-{'[0-9a-f]' * 8}"):
            shutil.rmtree(stale, ignore_errors=True)
        self.scratch.mkdir(mode=0o700)

    def _show_links(self, ray: Any, recorder: Recorder) -> dict[str, str]:
        """Say where to look on, and return the addresses by name."""
        dashboard = find_dashboard(ray)
        links = {"dashboard": dashboard} if dashboard else {}
        if recorder.link:
            links["mlflow"] = redact(recorder.link)
        shown = {"mlflow": show_command("ui", self.folder)} | links | {"status": show_command("status", self.folder)}
        for name, link in shown.items():
            self.console.print(f"{name:<10} {escape(link)}", highlight=False, soft_wrap=True)
        return links

    def _stop(self, error: BaseException, recorder: Recorder) -> None:
        """Leave all in order, the files first: whoever stopped the suite may not wait long for the rest.

        Raises SuiteStopped, which says how the suite stands, if `error` is an interrupt.
        """
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = name_interrupt() if interrupted else type(error).__name__
        with contextlib.suppress(OSError, UserError):
            self._write_suite_file("stopped", recorder.uri, wait_s=0.0)
        self.status.tell(f"stopped by {reason}")
        self.status.close("stopped")
        sent = recorder.close("KILLED")
        if not interrupted:
            return
        marked = "its MLflow runs are marked KILLED" if sent else "its MLflow runs will be marked when MLflow answers"
        again = f": {redact(self.request.command)}" if self.request.command else ""
        raise SuiteStopped(
            f"interrupted ({reason}); {marked}, finished stages are kept, the same command resumes from here{again}"
        ) from None

    def _slots(self, ray: Any) -> Slots:
        request = self.request
        if request.slots is not None:
            wait_s = max((s.cluster.scale_wait_s for s in self.settings.values()), default=0.0)
            wait_for_room(ray, request.gpus_per_trial or 0.0, request.workers_per_trial, wait_s, self._say)
        nodes = read_nodes(ray)
        gpus = request.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        slots = measure_slots(nodes, 1, gpus, request.workers_per_trial)
        if request.slots is not None:
            slots = replace(slots, count=request.slots)
        # Only if the request does not set a trial's share; each worker of one trial has a whole GPU.
        return replace(slots, packed=self.request.gpus_per_trial is None and gpus > 0 and slots.workers == 1)

    def _run_tasks(self, ray: Any, slots: Slots, recorder: Recorder) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from l2g_ray.monitor.events import Board
        from l2g_ray.orchestrate.remote import run_task

        # Beside the driver: it must not go with a machine that only lends its slots.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        remote = ray.remote(num_cpus=0, max_retries=PIPELINE_RETRIES, max_calls=1)(run_task)
        self._make_scratch()
        order, at_once = self._order(slots)
        slot_log = SlotLog()
        on_cpu = find_cpu_precision(self.settings.values(), slots, self.store.root, self.remote_stages)
        sites = [self._site(name, slots, on_cpu) for name in order]
        waiting = [TaskSpec(site, slots, min(len(order), at_once), self.request.verbose) for site in sites]
        running: dict[Any, str] = {}

        def start_tasks() -> None:
            while waiting and len(running) < at_once:
                spec = waiting.pop(0)
                running[remote.remote(spec, board)] = spec.site.task

        self.status.say("trains")
        storage = StorageWatch(self.request.remote or self.request.out, self._say)
        metrics_by_task = {name: task.task.metric for name, task in self.prepared.items()}
        metrics = SuiteMetrics(self.request.name, metrics_by_task)
        outlines = {site.task: self._outline(site) for site in sites}
        with Progress(self.console, metrics_by_task, self.request.name, outlines) as progress:
            try:
                start_tasks()
                while running:
                    done, _ = ray.wait(list(running), timeout=POLL_S)
                    storage.look()
                    events: list[Event] = ray.get(board.drain.remote())
                    for event in events:
                        if isinstance(event, SlotTimes):  # no news: a reckoning for the end
                            slot_log.take(event)
                            continue
                        progress.update(event)
                        recorder.record(event)
                        if isinstance(event, Recorded):
                            self.events.append(event)
                        metrics.record(event)
                        self.status.tell(describe_event(event))
                    ended = {reference: running.pop(reference) for reference in done}
                    start_tasks()  # first: a row takes the driver seconds
                    for reference, name in ended.items():
                        self._take(ray, reference, name, progress, recorder)
                    standing = progress.snapshot()
                    self.status.show(standing)
                    metrics.show(standing, recorder.count_waiting())
                self.use = slot_log.measure(slots.count)
            except BaseException:
                for reference in running:
                    ray.cancel(reference, force=True)
                raise

    def _site(self, name: str, slots: Slots, on_cpu: str) -> Site:
        settings, device = self.settings[name], "cuda" if slots.gpus else "cpu"
        return Site(
            task=name,
            prepared=str(self.prepared[name].folder.absolute()),
            settings=settings,
            root=self.store.root,
            scratch=self.scratch,
            threads=slots.cpus,
            device=device,
            gpus=slots.gpus,
            precision=resolve_precision(settings.precision, device, on_cpu),
            remote=self.remote_stages,
            data_dir=self.request.data_dir.resolve() if self.request.data_dir else None,
        )

    def _outline(self, site: Site) -> list[Step]:
        return outline_task(self.prepared[site.task], site.settings, site.device == "cuda", site.precision)

    def _order(self, slots: Slots) -> tuple[list[str], int]:
        """Return names in the order in which tasks start, and how many run at once; see `plan.order`."""
        from l2g_ray.plan.order import FEWEST_TO_PLAN, count_at_once, estimate_length, order_tasks

        if len(self.prepared) < FEWEST_TO_PLAN:
            return list(self.prepared), slots.count + 1
        lengths = {}
        with ReadingProgress(self.console, self.request.name) as progress:
            for name, task in self.prepared.items():
                progress.advance("estimating how long each task is", 0)
                rows = rows_of_manifest(task.manifest["splits"], "prepared data")
                lengths[name] = estimate_length(task.task, self.settings[name], rows, slots.gpus > 0)
        return order_tasks(lengths), count_at_once(lengths, slots.count)

    def _take(self, ray: Any, reference: Any, name: str, progress: Progress, recorder: Recorder) -> None:
        from l2g_ray.orchestrate.place import StageFailed

        try:
            outcome = ray.get(reference)
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UserError):
                self.failures[name] = redact(str(cause))
            else:
                first = str(cause).strip().splitlines()[0] if str(cause) else ""
                kind = "" if isinstance(cause, StageFailed) else f"{type(cause).__name__}: "
                self.failures[name] = kind + redact(first)
                recorder.log_failure(name, str(error))
            recorder.end_task(name, "FAILED")
            progress.finish(name, f"failed: {self.failures[name]}", failed=True)
            return
        task_folder = self.folder / name
        for result in (*(member.result for member in outcome.members), outcome.evaluation):
            self.store.need(result.folder)
        self._persist(lambda: write_task_folder(task_folder, self.prepared[name], outcome))
        self.rows[name] = assemble_row(self.prepared[name], self.settings[name], outcome, task_folder)
        self.details[name] = read_details(task_folder, self.rows[name], self.settings[name].model_dump(mode="json"))
        recorder.log_task(name, task_folder, self.rows[name], self.prepared[name], self.request.register)
        self._push(task_folder)
        progress.finish(name, describe_result(self.rows[name]))

    def _finish(self, recorder: Recorder) -> Board:
        self.status.say("waits for MLflow")
        recorder.wait()  # for the models' URIs
        self.status.say("reports")
        for name, row in self.rows.items():
            row["model_uri"] = recorder.model_uri(name)
        order = [task.name for task in self.request.tasks]
        models = sorted({s.model.language_model for s in self.settings.values()})
        board: Board = {
            "schema": 1,
            "bench": self.request.bench,
            "preset": self.request.preset,
            "language_model": ", ".join(models),
            "tasks": [self.rows[name] for name in order if name in self.rows],
            "slots": self.use.to_dict() if self.use else None,
        }
        if self.use:
            recorder.log_slots(self.use.to_dict())
        self._persist(lambda: write_events(self.folder, self.events))
        self._persist(lambda: write_leaderboard(board, self.folder))
        self._write_suite_file("reporting", recorder.uri)
        details = [self.details[name] for name in order if name in self.details]
        parameters = count_parameters(self.folder, board)
        self._persist(lambda: write_report(self.folder, board, details, parameters=parameters))
        recorder.log_suite(self.folder)
        sent = recorder.close("FINISHED" if not self.failures else "FAILED")
        self._push(self.folder)
        # Last of all: "finished" means that a second run has nothing to do, MLflow included.
        state = "failed" if self.failures else "finished" if sent else "unsent"
        self._write_suite_file(state, recorder.uri)
        self.status.close(state)
        return board

    def _write_suite_file(self, state: str, uri: str, wait_s: float | None = None) -> None:
        meta: SuiteMeta = {
            "schema": 1,
            "state": state,
            "key": self.key,
            "name": self.request.name,
            "bench": self.request.bench,
            "preset": self.request.preset,
            "command": self.request.command,
            **name_store(self.request, uri),
            "folder": str(self.folder.absolute()) if self.request.remote is None else None,
            "started": self.started,
            **self.environment,
            "wall_s": round(time.monotonic() - self.begun, 1),
            "costs": {name: row["costs"] for name, row in self.rows.items()},
            "slots": self.use.to_dict() if self.use else None,
            "settings": {name: s.model_dump(mode="json") for name, s in self.settings.items()},
            "fingerprints": {
                name: {split: p.fingerprint(split) for split in ("train", "valid", "test")}
                for name, p in self.prepared.items()
            },
            "tasks": self.identity.tasks,
            "language_models": self.identity.language_models,
            "stage_versions": self.identity.versions,
        }

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / SUITE_FILE, clean(meta))

        self._persist(write, wait_s)
        if (remote := self.request.remote) is not None:
            target = remote / self.request.name / SUITE_FILE
            patience_s = self.wait_s if wait_s is None else wait_s
            persist(remote, lambda: target.upload(self.folder / SUITE_FILE), patience_s, self._say)

    def _persist(self, write: Callable[[], Any], wait_s: float | None = None) -> None:
        persist(self.request.out, write, self.wait_s if wait_s is None else wait_s, self._say)

    def _push(self, folder: Path) -> None:
        if self.request.remote is not None:
            there = self.request.remote / folder.relative_to(self.request.out).as_posix()
            push(folder, there, self.wait_s, self._say)

"""What a user of the app does, step by step, without a page: one piece of work at a time."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_zipit.app.job import Job
from hf_zipit.app.places import Places
from hf_zipit.app.work import Look, Outcome, Way, look, merge, tidy, upload
from hf_zipit.commands.making import Order
from hf_zipit.errors import OptionError
from hf_zipit.files.names import MARK
from hf_zipit.recipe import Recipe
from hf_zipit.saving.save import check_output
from hf_zipit.sources.access import NOTHING, Access

DIAGNOSIS, MERGE, UPLOAD = "Diagnosis", "Merge", "Upload"
ALL = Way("share all layers", 1.0)  # the way before anything is known of the models


@dataclass(frozen=True)
class Form:
    """What a user entered.

    Attributes:
        models: paths or Hub ids.
        data: paths or Hub ids of images: one for all models, or one for each.
        tasks: names of the tasks; by default those of the models.
        method: how units are matched.
        calibrate: how the merge is calibrated.
        num_images: images per data set; by default what suits.
        labelled: images with labels, to measure the merge on.
    """

    models: Sequence[str]
    data: Sequence[str]
    tasks: Sequence[str] = ()
    method: str = "auto"
    calibrate: str = "auto"
    num_images: int | None = None
    labelled: Sequence[str] = ()


class Session:
    """The state of the app.

    Args:
        places: the folders that may be read and written.
        access: what the user allows when models are read.
        start: makes a `Job`.

    Attributes:
        job: the work that runs or ran last.
        form: what was entered for it.
        look: what is known of the models.
        outcome: the merge that was made last.
        uploaded: where it was uploaded to.

    Raises:
        OutputError: the working folder cannot be written.
    """

    def __init__(self, places: Places, access: Access = NOTHING, start: Callable[..., Any] = Job) -> None:
        self.places = places
        self.access = access
        self.job: Any = None
        self.form: Form | None = None
        self.look: Look | None = None
        self.outcome: Outcome | None = None
        self.uploaded: str | None = None
        self._start = start
        self._lock = threading.Lock()
        self._loaded: tuple[Outcome, Any] | None = None
        try:
            self.scratch = Path(tempfile.mkdtemp(prefix=f"{MARK}.app.", dir=places.folder))
        except OSError as error:
            raise OptionError(
                f"{places.folder} cannot be written ({error.strerror}): choose another --folder"
            ) from None

    def close(self) -> None:
        """End what runs, and remove all temporary files."""
        self.cancel()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether work goes on."""
        return self.job is not None and bool(self.job.running)

    def diagnose(self, form: Form) -> None:
        """Begin to find out how some models can be merged.

        Raises:
            OptionError: the form is incomplete, names what may not be read, or other work goes on.
        """
        recipe = self._recipe(form)

        def keep(found: Look) -> None:
            self.look = found

        self._begin(keep, look, recipe, self.access, self._drawn() / "diagnosis.png", title=DIAGNOSIS)
        self.form = form

    def merge(self, form: Form, way: int, name: str) -> None:
        """Begin to merge.

        Args:
            form: the models, images and options.
            way: the number of the way to merge among those that `ways` returns.
            name: of the folder for the result, below the working folder.

        Raises:
            OptionError: the form or the name is wrong, the models are not those that were looked at, or other work
                goes on.
            OutputError: the folder cannot be written.
        """
        recipe, out = self._recipe(form), self.places.result(name)
        known = self.look is not None and self.look.recipe.sources == recipe.sources
        if way and not known:
            raise OptionError("these are not the models that were diagnosed: diagnose them, then choose what to share")
        chosen = self.ways[way] if known else ALL
        recipe = recipe.changed(cut=chosen.cut, width=chosen.width)
        labelled = [self.places.data(one) for one in form.labelled] or None
        order = Order(recipe, self.access, out, eval_data=labelled)
        order.check()
        check_output(out)
        missing, began = [path for path in out.parents if not path.exists()], time.time()

        def keep(found: Outcome) -> None:
            self.outcome, self.uploaded = found, None

        def undo(job: Any) -> None:
            tidy(out, missing, began if job.cancelled else None)

        self._begin(keep, merge, order, self._drawn(), title=MERGE, undo=undo)
        self.form = form

    def push(self, repo: str, token: str, private: bool) -> None:
        """Begin to upload the merge that was made last.

        Args:
            repo: the repository, `user/name`.
            token: an access token; empty for that of the login.
            private: visibility of a new repository.

        Raises:
            OptionError: there is no merge, the token cannot be one, or other work goes on.
        """
        made = self._made()
        Access(token or None)  # which refuses what no token is

        def keep(address: str) -> None:
            self.uploaded = address

        self._begin(keep, upload, made.folder, repo.strip(), token.strip() or None, private, title=UPLOAD)

    def cancel(self) -> bool:
        """End what runs, and leave nothing of it; whether anything ran."""
        if not self.busy:
            return False
        self.job.cancel()
        return bool(self.job.cancelled)

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways to merge the models that were looked at."""
        return self.look.ways if self.look is not None else (ALL,)

    def try_image(self, image: Any) -> Any:
        """The `Answers` of the merge that was made last for a PIL image.

        Raises:
            ZipItError: there is no merge, or it cannot be loaded or run.
        """
        from hf_zipit.app.answers import answers
        from hf_zipit.saving.load import load_merged

        made = self._made()
        if self._loaded is None or self._loaded[0] is not made:
            self._loaded = made, load_merged(made.folder)
        return answers(self._loaded[1], image)

    def zipped(self) -> Path:
        """A zip file of the merge that was made last.

        Raises:
            OptionError: there is no merge.
        """
        folder = self._made().folder
        return Path(shutil.make_archive(str(self._drawn() / folder.name), "zip", folder.parent, folder.name))

    def _made(self) -> Outcome:
        if self.outcome is None or not self.outcome.folder.is_dir():
            raise OptionError("there is no merge yet: make one first")
        return self.outcome

    def _drawn(self) -> Path:
        """A new folder for pictures: a page may still show earlier ones."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def _recipe(self, form: Form) -> Recipe:
        """The recipe of a form."""
        given: dict[str, Any] = {
            "sources": [self.places.model(one.strip()) for one in form.models if one.strip()],
            "data": [self.places.data(one.strip()) for one in form.data if one.strip()],
            "tasks": [one.strip() for one in form.tasks if one.strip()],
            "num_images": form.num_images,
        }
        if len(given["sources"]) < 2:
            raise OptionError("choose two models or more")
        if not given["data"]:
            raise OptionError("choose images like those that the models were made for; labels are not needed")
        given |= {"method": form.method, "calibrate": form.calibrate}
        return Recipe(**{name: value for name, value in given.items() if value})

    def _begin(
        self,
        take: Callable[[Any], None],
        run: Callable[..., Any],
        *arguments: Any,
        title: str,
        undo: Callable[[Any], None] = lambda job: None,
    ) -> None:
        """Start work, if none goes on. In the end its result is taken, or else what it left is undone."""

        def end(job: Any) -> None:
            take(job.result) if job.result is not None else undo(job)

        with self._lock:
            if self.busy:
                raise OptionError(f"one thing at a time: the {self.job.title.lower()} runs; wait for it, or cancel it")
            self.job = self._start(run, *arguments, title=title, then=end)

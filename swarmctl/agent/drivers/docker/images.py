"""Getting images onto the node: asked for once, pulled once, however many launches want them.

That an image is there is remembered, so that forty launches of it cost one question.  The memory
may be wrong (someone removed the image): then dockerd refuses the create, the driver calls
:meth:`Images.forget` and asks here again.

Launches that want the same image at the same time share one pull: :mod:`..attempts`.
"""

from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlencode

import trio
from attrs import define, field

from swarmctl.agent.drivers.api import Progress
from swarmctl.agent.drivers.attempts import Attempts
from swarmctl.agent.drivers.docker.calls import Calls, Client, NoImage
from swarmctl.agent.drivers.docker.faults import translate_pull
from swarmctl.agent.drivers.docker.wire import Endpoint, Refusal, request
from swarmctl.proto.errors import InvalidSpec

# "Is it there?" is answered from dockerd's memory.
INSPECT_S: Final = 20.0
# dockerd reports a pull's progress many times a second; a registry may be slow to begin with.
PULL_IDLE_S: Final = 120.0
DEFAULT_REGISTRY: Final = "docker.io"


def split_image(image: str) -> tuple[str, str, str]:
    """Registry, repository as Docker wants it, and tag or digest: ``latest`` when none is said."""
    name, at, digest = image.partition("@")
    path, _, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    repository = f"{path}/{last}" if path else last
    first = repository.split("/", 1)[0]
    has_registry = "/" in repository and ("." in first or ":" in first or first == "localhost")
    return (
        (first if has_registry else DEFAULT_REGISTRY),
        repository,
        digest if at else tag or "latest",
    )


@define
class _Download:
    """Progress of a pull: bytes by layer, told as a percentage when that changes."""

    image: str
    progress: Progress
    layers: dict[str, tuple[int, int]] = field(factory=dict)
    told: int = -1

    def note(self, line: dict[str, Any]) -> None:
        """Take one line of dockerd's answer.

        Raises:
            Refusal: it says that the pull failed.
        """
        if "error" in line:
            raise Refusal(500, str(line["error"]))
        detail = line.get("progressDetail") or {}
        layer = line.get("id", "")
        if line.get("status") == "Downloading" and detail.get("total"):
            self.layers[layer] = (detail.get("current", 0), detail["total"])
        elif line.get("status") in ("Download complete", "Pull complete") and layer in self.layers:
            self.layers[layer] = (self.layers[layer][1], self.layers[layer][1])
        total = sum(size for _, size in self.layers.values())
        percent = sum(got for got, _ in self.layers.values()) * 100 // total if total else 0
        if percent != self.told:
            self.told = percent
            self.progress(f"pulling {self.image}: {percent}%")


class Images:
    """The images of one dockerd, as this driver knows them."""

    def __init__(self, calls: Calls, endpoint: Endpoint) -> None:
        self._calls = calls
        self._endpoint = endpoint
        self._present: set[str] = set()
        self._attempts = Attempts()

    def forget(self, image: str) -> None:
        """Ask dockerd again the next time."""
        self._present.discard(image)

    async def ensure(self, image: str, where: str, progress: Progress) -> None:
        """See to it that ``image`` is on the node.

        Raises:
            NotFound: it does not exist, or may not be had.
            InvalidSpec: that is no image's name.
            LaunchFailed: the registry is out of reach, or the pull broke off.
            DriverUnavailable: dockerd does not answer.
        """

        async def get() -> None:
            if not await self._is_here(image, where):
                await self._pull(image, where, progress)
            self._present.add(image)

        await self._attempts.until(lambda: image in self._present, image, where, get)

    async def _is_here(self, image: str, where: str) -> bool:
        try:
            await self._calls.run(
                lambda client: client.inspect_image(image),
                where=where,
                doing=f"look for image {image}",
                deadline_s=INSPECT_S,
            )
        except NoImage:
            return False
        return True

    async def _pull(self, image: str, where: str, progress: Progress) -> None:
        registry, repository, tag = split_image(image)
        headers = await self._credentials(repository, where)
        query = urlencode({"fromImage": repository, "tag": tag})
        download = _Download(image, progress)
        try:
            async with request(
                self._endpoint,
                "POST",
                f"/images/create?{query}",
                headers=headers,
                answer_within_s=PULL_IDLE_S,
            ) as answer:
                with trio.fail_after(PULL_IDLE_S) as idle:
                    async with aclosing(answer.objects()) as lines:
                        async for line in lines:
                            idle.deadline = trio.current_time() + PULL_IDLE_S
                            download.note(line)
        except Refusal as refusal:
            raise translate_pull(image, registry, refusal.text, where) from None
        except (trio.TooSlowError, trio.BrokenResourceError):
            raise translate_pull(
                image, registry, "the pull broke off: i/o timeout", where
            ) from None

    async def _credentials(self, repository: str, where: str) -> dict[str, str]:
        """The node's own logins, as `docker login` keeps them (with credential helpers)."""

        def look_up(client: Client) -> dict[str, str]:
            from docker import auth
            from docker.errors import InvalidRepository

            try:
                registry, _ = auth.resolve_repository_name(repository)
            except InvalidRepository as error:
                raise InvalidSpec(f"{repository!r} is no image's name: {error}", where) from None
            header = auth.get_config_header(client, registry)
            return {"X-Registry-Auth": header.decode()} if header else {}

        return await self._calls.run(
            look_up, where=where, doing="read the node's registry logins", deadline_s=INSPECT_S
        )

"""An RTSP server on the loopback, of real encoders: started by the system's Python, which has GStreamer's bindings.

    python3 rtsp_server.py FPS [USER PASSWORD]

prints its port. Mounts /h264, /h265 and /mjpeg, each encoded once for all that watch. A picture holds its number and
the time of day when it was made, in blocks (`tests.runtime.rtsp.code`). A line "stall" on stdin stops the frames while
connections stay, "run" starts them again; "step CODEC N" makes N frames more of a camera that stalls, and prints the
number of its latest ("frame 12"). It prints "play" whenever a viewer has begun to watch. It ends when stdin does.
"""

import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402  # versions come first

WIDTH, HEIGHT, BLOCK, BITS = 320, 192, 8, 64
NEEDED = ("x264enc", "x265enc", "jpegenc", "rtph264pay", "rtph265pay", "rtpjpegpay", "appsrc", "rtspsrc")
ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1 ! "
    "video/x-h264,profile=baseline ! rtph264pay name=pay0 pt=96 config-interval=1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=5 "
    "option-string=pools=none:frame-threads=1:log-level=none ! rtph265pay name=pay0 pt=96 config-interval=1",
    "mjpeg": "jpegenc quality=85 ! rtpjpegpay name=pay0 pt=26",
}
running = threading.Event()
running.set()
cameras: "dict[str, Camera]" = {}


def picture(number: int) -> bytes:
    """Gray, I420, with 24 bits of `number` and 40 of milliseconds since 1970, 32 blocks a row."""
    value = (number & 0xFFFFFF) << 40 | int(time.time() * 1000) & ((1 << 40) - 1)
    image = bytearray(b"\x80") * (WIDTH * HEIGHT * 3 // 2)
    for row in range(2):
        bits = [value >> (BITS - 1 - row * 32 - i) & 1 for i in range(32)]
        line = b"".join(bytes([235 if bit else 16]) * BLOCK for bit in bits)
        for y in range(row * BLOCK, (row + 1) * BLOCK):
            image[y * WIDTH : y * WIDTH + len(line)] = line
    return bytes(image)


class Camera:
    """Makes pictures for `source`; `latest` is the number of the last one, -1 before the first."""

    def __init__(self, source: Gst.Element, fps: int) -> None:
        self.source, self.fps, self.latest = source, fps, -1
        self.lock = threading.Lock()

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(1 / self.fps):
            with self.lock:
                if running.is_set() and not self.make():
                    return

    def step(self, count: int) -> int:
        for _ in range(count):
            time.sleep(1 / self.fps)
            with self.lock:
                self.make()
        with self.lock:
            return self.latest

    def make(self) -> bool:
        self.latest += 1
        return self.source.emit("push-buffer", Gst.Buffer.new_wrapped(picture(self.latest))) == Gst.FlowReturn.OK


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self, codec: str, fps: int) -> None:
        super().__init__()
        self.codec, self.fps = codec, fps
        self.set_shared(True)

    def do_create_element(self, url: object) -> Gst.Element:
        caps = f"video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={self.fps}/1"
        source = f"appsrc name=src is-live=true do-timestamp=true format=time caps={caps}"
        return Gst.parse_launch(f"( {source} ! queue max-size-buffers=2 leaky=downstream ! {ENCODERS[self.codec]} )")

    def do_configure(self, media: GstRtspServer.RTSPMedia) -> None:
        GstRtspServer.RTSPMediaFactory.do_configure(self, media)  # which makes it a shared one
        ended = threading.Event()
        media.connect("unprepared", lambda _: ended.set())
        camera = cameras[self.codec] = Camera(media.get_element().get_child_by_name("src"), self.fps)
        threading.Thread(target=camera.run, args=(ended,), daemon=True).start()


def protect(server: GstRtspServer.RTSPServer, user: str, password: str) -> None:
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest(user, password, token)
    server.set_auth(auth)


def watch(url: str) -> Gst.Element:
    """A viewer that stays: a server whose last viewer goes while the next one comes may not answer that one at all."""
    login = f"user-id={sys.argv[2]} user-pw={sys.argv[3]}" if len(sys.argv) > 3 else ""
    viewer = Gst.parse_launch(f"rtspsrc location={url} protocols=tcp {login} ! fakesink sync=false")
    viewer.set_state(Gst.State.PLAYING)
    return viewer


def main() -> None:
    Gst.init(None)
    missing = [name for name in NEEDED if Gst.ElementFactory.find(name) is None]
    if missing:
        sys.exit(f"GStreamer has no {', '.join(missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    protected = len(sys.argv) > 3
    if protected:
        protect(server, sys.argv[2], sys.argv[3])
    for codec in ENCODERS:
        factory = Factory(codec, int(sys.argv[1]))
        if protected:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role("user", "media.factory.access", True)
            permissions.add_permission_for_role("user", "media.factory.construct", True)
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(f"/{codec}", factory)
    if server.attach(None) == 0:
        sys.exit("cannot listen")
    loop = GLib.MainLoop()
    threading.Thread(target=loop.run, daemon=True).start()
    viewers = [watch(f"rtsp://127.0.0.1:{server.get_bound_port()}/{codec}") for codec in ENCODERS]
    for viewer in viewers:
        viewer.get_state(60 * Gst.SECOND)
    server.connect("client-connected", lambda _, client: client.connect("play-request", lambda *_: say("play")))
    say(str(server.get_bound_port()))
    for line in sys.stdin:
        order, *details = line.split()
        if order == "step":
            say(f"frame {cameras[details[0]].step(int(details[1]))}")
        else:
            (running.clear if order == "stall" else running.set)()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")  # at once, as the line of another thread would come between
    sys.stdout.flush()


if __name__ == "__main__":
    main()

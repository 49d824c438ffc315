// Where pictures come from: files, a video file, a camera.

/** A picture to detect on: { name, blob, bitmap, width, height, answers by model }. */
function picture(name, blob, bitmap) {
  return { name, blob, bitmap, width: bitmap?.width ?? 0, height: bitmap?.height ?? 0, answers: new Map() };
}

/** A picture of a file. What the browser cannot decode has no bitmap: the server reads more kinds, and says what is
 * no picture at all. */
export function fromFile(file) {
  return picture(file.name || "pasted", file, null);
}

/** Decode a file's picture, upright by its EXIF orientation as the server does; null where the browser cannot. */
export async function decoded(blob) {
  try {
    return await createImageBitmap(blob);
  } catch { // TIFF, or no picture
    return null;
  }
}

/** What goes wrong with a camera or a video file, in words for the page. */
export class SourceError extends Error {}

async function frameOf(video, name) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  if (!blob) throw new SourceError(`${name}: the browser could not take the frame`);
  return picture(name, blob, await createImageBitmap(canvas));
}

function happens(target, event, seconds) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new SourceError(`the video gave nothing for ${seconds} s`)), seconds * 1000);
    target.addEventListener(event, () => { clearTimeout(late); resolve(); }, { once: true });
    target.addEventListener("error", () => {
      clearTimeout(late);
      reject(new SourceError("the browser cannot play this video"));
    }, { once: true });
  });
}

/** A video file: frames at times that follow one another; none is left out while the server is busy. */
export class Clip {
  static async open(file) {
    const clip = new Clip(file.name || "video", document.createElement("video"), URL.createObjectURL(file));
    clip.video.muted = true;
    clip.video.preload = "auto";
    const loaded = happens(clip.video, "loadeddata", 20);
    clip.video.src = clip.address;
    try {
      await loaded;
      if (!clip.video.videoWidth) throw new SourceError("the file has no picture");
    } catch (error) {
      clip.close();
      throw error instanceof SourceError ? new SourceError(`${clip.name}: ${error.message}`) : error;
    }
    return clip;
  }

  constructor(name, video, address) {
    Object.assign(this, { name, video, address, running: true, live: false, begun: false });
  }

  get duration() {
    return Number.isFinite(this.video.duration) ? this.video.duration : 0;
  }

  /** The next frame, `seconds` after the last one; null at the end. */
  async next(seconds) {
    const first = !this.begun;
    this.begun = true;
    if (first) return this.take();
    if (this.video.currentTime + seconds > this.duration) return null;
    return this.at(this.video.currentTime + seconds);
  }

  /** The frame at a time in seconds. */
  async at(time) {
    const end = Math.max(0, this.duration - 0.001), sought = Math.max(0, Math.min(time, end));
    if (Math.abs(sought - this.video.currentTime) > 1e-6) {
      const done = happens(this.video, "seeked", 20);
      this.video.currentTime = sought;
      await done;
    }
    return this.take();
  }

  take() {
    return frameOf(this.video, `${this.name} at ${this.video.currentTime.toFixed(2)} s`);
  }

  close() {
    this.running = false;
    this.video.removeAttribute("src");
    URL.revokeObjectURL(this.address);
  }
}

/** The camera of the device: its newest frame, when it is asked for one. */
export class Camera {
  static there() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  static async open() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    } catch (error) {
      const why = error.name === "NotAllowedError" ? "its use was not allowed" : error.message;
      throw new SourceError(`The camera cannot be used: ${why}`);
    }
    const camera = new Camera(stream, document.createElement("video"));
    Object.assign(camera.video, { muted: true, playsInline: true, srcObject: stream });
    await camera.video.play();
    return camera;
  }

  constructor(stream, video) {
    Object.assign(this, { stream, video, running: true, live: true, duration: 0 });
  }

  next() {
    return frameOf(this.video, "camera");
  }

  close() {
    this.running = false;
    for (const track of this.stream.getTracks()) track.stop();
    this.video.srcObject = null;
  }
}

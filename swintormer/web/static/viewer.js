// Shows a picture before and after on a canvas: tiles as of a map, a divider, zoom and a mix of the two.
// All lengths are pixels of the screen unless a name says otherwise; `scale` is their number for one of the picture.

import { blend } from "./blend.js";

const KEPT = 300; // tiles, one megabyte each
const AT_ONCE = 6; // tiles being fetched
const BUDGET = 10; // milliseconds of mixing in one frame
const LARGEST = 16;
const GRIP = 22; // pixels of CSS around the divider that take hold of it
const MARGIN = 16;

const space = matchMedia("(color-gamut: p3)").matches ? "display-p3" : "srgb";

function pixels(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return [canvas, canvas.getContext("2d", { colorSpace: space, willReadFrequently: true })];
}

class Tile {
  constructor(bitmap) {
    this.bitmap = bitmap;
    this.data = null;
    this.mixed = null;
    this.strength = -1;
  }

  bytes() {
    if (!this.data) {
      const [, context] = pixels(this.bitmap.width, this.bitmap.height);
      context.drawImage(this.bitmap, 0, 0);
      this.data = context.getImageData(0, 0, this.bitmap.width, this.bitmap.height).data;
    }
    return this.data;
  }

  /** This tile mixed with that of before, on a canvas. */
  mix(before, strength) {
    if (!this.mixed) this.mixed = pixels(this.bitmap.width, this.bitmap.height);
    const [canvas, context] = this.mixed;
    const image = context.createImageData(canvas.width, canvas.height);
    blend(before.bytes(), this.bytes(), strength, image.data);
    context.putImageData(image, 0, 0);
    this.strength = strength;
    return canvas;
  }

  close() {
    this.bitmap.close();
  }
}

export class Viewer {
  /** `changed` is called when zoom or divider have moved. */
  constructor(root, canvas, changed) {
    this.root = root;
    this.canvas = canvas;
    this.changed = changed;
    this.context = canvas.getContext("2d", { colorSpace: space });
    this.picture = null;
    this.after = null;
    this.strength = 1;
    this.divider = 0.5;
    this.peek = "";
    this.fitted = true;
    this.scale = 1;
    this.x = this.y = 0; // of the picture's corner
    this.tiles = new Map();
    this.fetching = new Set();
    this.failed = new Set();
    this.pointers = new Map();
    this.frame = 0;
    this.listen();
    new ResizeObserver(() => this.resize()).observe(root);
  }

  /** Show a picture: {id, width, height, levels, tile, transparent}; `after` names its restoration, or is null. */
  show(picture, after, strength) {
    const other = picture?.id !== this.picture?.id;
    if (!other && after === this.after && strength === this.strength) return;
    this.picture = picture;
    this.after = after;
    this.strength = strength;
    if (other) {
      this.fitted = true;
      this.resize();
    }
    this.draw();
  }

  forget(id) {
    for (const [key, tile] of this.tiles) {
      if (key.startsWith(`${id}/`)) {
        tile.close();
        this.tiles.delete(key);
      }
    }
  }

  // Place and zoom

  get ratio() {
    return window.devicePixelRatio || 1;
  }

  get fit() {
    const { width, height } = this.picture;
    const room = 2 * MARGIN * this.ratio;
    return Math.min((this.canvas.width - room) / width, (this.canvas.height - room) / height, 2 * this.ratio);
  }

  resize() {
    const { clientWidth, clientHeight } = this.root;
    const width = Math.max(1, Math.round(clientWidth * this.ratio));
    const height = Math.max(1, Math.round(clientHeight * this.ratio));
    if (width !== this.canvas.width || height !== this.canvas.height) {
      this.x += (width - this.canvas.width) / 2;
      this.y += (height - this.canvas.height) / 2;
      this.canvas.width = width;
      this.canvas.height = height;
    }
    if (this.picture && this.fitted) this.scale = this.fit;
    this.settle();
  }

  /** Keep the picture in sight: in the middle where it is smaller than the canvas, else without a gap. */
  settle() {
    if (!this.picture) return;
    const place = (at, length, room) =>
      Math.round(length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, at)));
    this.x = place(this.x, this.picture.width * this.scale, this.canvas.width);
    this.y = place(this.y, this.picture.height * this.scale, this.canvas.height);
    this.changed();
    this.draw();
  }

  /** Zoom to a scale; the point of the picture under (x, y) stays there. */
  zoom(scale, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.picture) return;
    const least = Math.min(this.fit, 1);
    scale = Math.min(LARGEST * this.ratio, Math.max(least, scale));
    if (Math.abs(scale - 1) < 0.02) scale = 1;
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = scale === this.fit;
    this.settle();
  }

  zoomBy(factor, x, y) {
    this.zoom(this.scale * factor, x, y);
  }

  zoomFit() {
    if (!this.picture) return;
    this.fitted = true;
    this.resize();
  }

  get movable() {
    const { width, height } = this.picture;
    return width * this.scale > this.canvas.width || height * this.scale > this.canvas.height;
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.settle();
  }

  /** Left and right end of what is seen of the picture. */
  get ends() {
    const right = this.x + this.picture.width * this.scale;
    return [Math.max(0, this.x), Math.min(this.canvas.width, right)];
  }

  get dividerAt() {
    const [left, right] = this.ends;
    return left + this.divider * (right - left);
  }

  setDivider(share) {
    this.divider = Math.min(1, Math.max(0, share));
    this.changed();
    this.draw();
  }

  dividerTo(x) {
    const [left, right] = this.ends;
    this.setDivider((x - left) / (right - left));
  }

  // Drawing

  draw() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    const { context, canvas, picture } = this;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture) return;
    context.imageSmoothingEnabled = this.scale < 2;
    context.imageSmoothingQuality = "high";
    this.wanted = [];
    this.until = performance.now() + BUDGET;
    this.late = false;
    this.ground();
    const after = this.after !== null && this.peek !== "before";
    const split = !after ? canvas.width : this.peek === "after" ? 0 : Math.round(this.dividerAt);
    if (split > 0) this.layer(0, split, false);
    if (after && split < canvas.width) this.layer(split, canvas.width, true);
    this.fetch();
    this.evict();
    if (this.late) this.draw();
  }

  ground() {
    const { context, picture } = this;
    context.fillStyle = "#8883";
    if (picture.transparent) {
      if (!this.checks) {
        const [canvas, squares] = pixels(16, 16);
        squares.fillStyle = "#fff";
        squares.fillRect(0, 0, 16, 16);
        squares.fillStyle = "#ccc";
        squares.fillRect(0, 0, 8, 8);
        squares.fillRect(8, 8, 8, 8);
        this.checks = context.createPattern(canvas, "repeat");
      }
      context.fillStyle = this.checks;
    }
    context.fillRect(this.x, this.y, picture.width * this.scale, picture.height * this.scale);
  }

  /** Before or after, between two columns of the canvas: the coarsest level first, which is one tile, then ours. */
  layer(from, to, restored) {
    const { context, canvas, picture } = this;
    const own = Math.min(picture.levels - 1, Math.max(0, Math.floor(Math.log2(1 / this.scale))));
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, canvas.height);
    context.clip();
    for (const level of own === picture.levels - 1 ? [own] : [picture.levels - 1, own]) {
      const side = this.scale * picture.tile * 2 ** level;
      const across = Math.ceil(picture.width / 2 ** level / picture.tile);
      const down = Math.ceil(picture.height / 2 ** level / picture.tile);
      const first = Math.max(0, Math.floor((from - this.x) / side));
      const last = Math.min(across - 1, Math.floor((to - 1 - this.x) / side));
      const top = Math.max(0, Math.floor(-this.y / side));
      const bottom = Math.min(down - 1, Math.floor((canvas.height - 1 - this.y) / side));
      for (let row = top; row <= bottom; row++) {
        for (let column = first; column <= last; column++) this.place(level, column, row, restored);
      }
    }
    context.restore();
  }

  place(level, column, row, restored) {
    const key = `${level}/${column}/${row}`;
    const mixed = restored && this.strength > 0 && this.strength < 1;
    const before = !restored || this.strength < 1 ? this.tile("before", key) : null;
    const after = restored && this.strength > 0 ? this.tile(this.after, key) : null;
    let drawn = null;
    if (mixed) {
      if (!before || !after) return;
      drawn = after.mixed?.[0];
      if (after.strength !== this.strength) {
        if (performance.now() < this.until) drawn = after.mix(before, this.strength);
        else this.late = true;
      }
    } else drawn = (after ?? before)?.bitmap;
    if (!drawn) return;
    const unit = this.scale * 2 ** level;
    const side = unit * this.picture.tile;
    const left = Math.round(this.x + column * side);
    const top = Math.round(this.y + row * side);
    // The edge of the next tile, or of the picture: a level of an odd length is half a pixel longer than it.
    const ends = (index, length, whole, at) =>
      Math.round(length < this.picture.tile ? at + whole * this.scale : at + (index + 1) * side);
    const right = ends(column, drawn.width, this.picture.width, this.x);
    const bottom = ends(row, drawn.height, this.picture.height, this.y);
    this.context.drawImage(drawn, left, top, right - left, bottom - top);
  }

  tile(which, place) {
    const key = `${this.picture.id}/tiles/${which}/${place}`;
    const tile = this.tiles.get(key);
    if (!tile) {
      this.wanted.push(key);
      return null;
    }
    this.tiles.delete(key); // to the end: used last
    this.tiles.set(key, tile);
    return tile;
  }

  fetch() {
    for (const key of this.wanted) {
      if (this.fetching.size >= AT_ONCE) return;
      if (this.fetching.has(key) || this.failed.has(key)) continue;
      this.fetching.add(key);
      this.load(key).finally(() => {
        this.fetching.delete(key);
        this.draw();
      });
    }
  }

  async load(key) {
    try {
      const answer = await fetch(`/api/pictures/${key}`);
      if (!answer.ok) throw new Error(answer.statusText);
      this.tiles.set(key, new Tile(await createImageBitmap(await answer.blob())));
    } catch {
      this.failed.add(key);
      setTimeout(() => this.failed.delete(key), 2000);
    }
  }

  evict() {
    for (const [key, tile] of this.tiles) {
      if (this.tiles.size <= KEPT) return;
      tile.close();
      this.tiles.delete(key);
    }
  }

  // Pointer and wheel

  listen() {
    const { root } = this;
    root.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    root.addEventListener("pointerdown", (event) => this.down(event));
    root.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, (event) => this.up(event));
    root.addEventListener("dblclick", (event) => {
      if (!this.picture || event.target.closest("button")) return;
      const [x, y] = this.point(event);
      if (this.scale === 1) this.zoomFit();
      else this.zoom(1, x, y);
    });
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
  }

  wheel(event) {
    if (!this.picture) return;
    event.preventDefault();
    const step = event.deltaY * [1, 16, 400][event.deltaMode];
    this.zoomBy(Math.exp(-step * (event.ctrlKey ? 0.01 : 0.0015)), ...this.point(event));
  }

  down(event) {
    if (!this.picture || event.button > 0 || event.target.closest("button")) return;
    const point = this.point(event);
    this.root.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, point);
    if (this.pointers.size === 2) this.dragging = "pinch";
    else if (this.pointers.size === 1) {
      const near = this.after !== null && Math.abs(point[0] - this.dividerAt) < GRIP * this.ratio;
      this.dragging = near || (!this.movable && this.after !== null) ? "divider" : "picture";
      if (this.dragging === "divider" && !near) this.dividerTo(point[0]);
      this.root.classList.toggle("moving", this.dragging === "picture");
    }
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    const now = this.point(event);
    if (!before) {
      const near = this.picture && this.after !== null && Math.abs(now[0] - this.dividerAt) < GRIP * this.ratio;
      this.root.classList.toggle("at-divider", Boolean(near));
      return;
    }
    if (this.dragging === "divider") this.dividerTo(now[0]);
    else if (this.dragging === "picture") this.move(now[0] - before[0], now[1] - before[1]);
    else if (this.dragging === "pinch") this.pinch(event.pointerId, before, now);
    this.pointers.set(event.pointerId, now);
  }

  pinch(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const span = (a, b) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
    this.move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
    this.zoomBy(span(now, other) / span(before, other), ...middle);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size === 1) this.dragging = "picture";
    else this.dragging = "";
    this.root.classList.remove("moving");
  }
}

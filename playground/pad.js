// A picture to draw on. Strokes stay here; the drawing is sent to `url` as a PNG while it grows, so a freehand stroke
// costs no messages to Python. Files that are chosen, dropped or pasted are sent there too.
const SEND_MS = 150; // between two drawings while the pen is down

function sentence(text) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return text;
  }
}

export default {
  template: `
    <div class="pad" :class="'pad-' + mode" @dragover.prevent="over = true" @dragleave="over = false" @drop.prevent="drop">
      <img v-if="background && mode !== 'sheet'" :src="background" alt="" draggable="false" />
      <canvas
        ref="canvas" :width="width" :height="height" role="img" :aria-label="label"
        @pointerdown="down" @pointermove="move" @pointerup="up" @pointercancel="up" @lostpointercapture="up"
      ></canvas>
      <input ref="file" type="file" accept="image/*" class="pad-file" tabindex="-1" aria-hidden="true" @change="choose" />
      <div v-if="over" class="pad-over">Drop the picture here</div>
    </div>
  `,
  props: {
    url: String, // PUT drawings and files here
    mode: String, // sheet: opaque, drawn on paper · photo: over the background · mask: over the background, alone is sent
    background: String,
    width: Number,
    height: Number,
    ink: String, // black or white
    size: Number, // of the pen, in pixels of the canvas
    eraser: Boolean,
    pastes: Boolean, // takes what is pasted anywhere on the page
    label: String,
  },
  emits: ["refused", "touched"],
  data: () => ({ over: false }),
  created() {
    this.strokes = []; // what undo takes back; not reactive
    this.base = null; // a drawing that lies on the sheet from the start
  },
  async mounted() {
    this.paste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (file && this.pastes) this.sendFile(file);
    };
    document.addEventListener("paste", this.paste);
    await this.reset();
  },
  unmounted() {
    document.removeEventListener("paste", this.paste);
  },
  watch: {
    background() {
      if (this.mode !== "mask") this.reset(); // a mask stays while what is below it changes
    },
    mode: "reset",
    width: "reset",
    height: "reset",
    ink() {
      if (this.mode === "sheet") {
        this.$nextTick(() => {
          this.replay();
          this.send(true);
        });
      }
    },
  },
  methods: {
    // ---- called from Python
    pick() {
      this.$refs.file.click();
    },
    undo() {
      this.strokes.pop();
      this.replay();
      this.send(true);
    },
    clear() {
      this.strokes.push({ clear: true });
      this.replay();
      this.send(true);
    },
    async reset() {
      this.strokes = [];
      this.base = null;
      await this.$nextTick();
      if (this.mode === "sheet" && this.background) {
        const image = new Image();
        image.src = this.background;
        await image.decode().catch(() => {});
        this.base = image.naturalWidth ? image : null;
      }
      this.replay();
    },

    // ---- drawing
    context() {
      return this.$refs.canvas?.getContext("2d");
    },
    paper() {
      return this.ink === "white" ? "black" : "white";
    },
    replay() {
      const context = this.context();
      if (!context) return;
      const from = this.strokes.findLastIndex((each) => each.clear);
      context.globalCompositeOperation = "source-over";
      context.clearRect(0, 0, this.width, this.height);
      if (this.mode === "sheet") {
        context.fillStyle = this.paper();
        context.fillRect(0, 0, this.width, this.height);
        if (this.base && from < 0) {
          context.drawImage(this.base, 0, 0, this.width, this.height);
          if (this.ink === "white") {
            context.globalCompositeOperation = "difference"; // inverts
            context.fillStyle = "white";
            context.fillRect(0, 0, this.width, this.height);
          }
        }
      }
      this.strokes.slice(from + 1).forEach((stroke) => this.draw(stroke, 0));
    },
    draw(stroke, first) {
      const context = this.context();
      const points = stroke.points;
      const rubs = stroke.eraser && this.mode !== "sheet";
      context.globalCompositeOperation = rubs ? "destination-out" : "source-over";
      context.strokeStyle = this.mode === "mask" ? "#f0f" : stroke.eraser ? this.paper() : this.ink;
      context.lineWidth = stroke.size;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...points[Math.max(0, first - 1)]);
      for (let i = first; i < points.length; i++) context.lineTo(...points[i]);
      context.stroke();
    },
    at(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * this.width,
        ((event.clientY - box.top) / box.height) * this.height,
      ];
    },
    down(event) {
      if (event.button > 0 || this.stroke) return;
      event.preventDefault();
      this.$refs.canvas.setPointerCapture(event.pointerId);
      this.pointer = event.pointerId;
      // The other end of a pen or its second button erases too.
      this.stroke = { points: [this.at(event)], size: this.size, eraser: this.eraser || (event.buttons & 32) > 0 };
      this.strokes.push(this.stroke);
      this.draw(this.stroke, 0);
      this.send(false);
    },
    move(event) {
      if (!this.stroke || event.pointerId !== this.pointer) return;
      const first = this.stroke.points.length;
      const events = event.getCoalescedEvents?.() ?? [];
      this.stroke.points.push(...(events.length ? events : [event]).map((each) => this.at(each)));
      this.draw(this.stroke, first);
      this.send(false);
    },
    up(event) {
      if (!this.stroke || event.pointerId !== this.pointer) return;
      this.stroke = null;
      this.send(true);
    },

    // ---- sending
    send(final) {
      this.pending = true;
      this.final = final;
      if (this.sending) return;
      if (final) {
        clearTimeout(this.timer);
        this.timer = null;
        this.flush();
      } else if (!this.timer) {
        this.timer = setTimeout(() => {
          this.timer = null;
          this.flush();
        }, SEND_MS);
      }
    },
    async flush() {
      this.sending = true;
      while (this.pending) {
        this.pending = false;
        const query = `?sheet=${this.mode === "sheet" ? 1 : 0}&final=${this.final ? 1 : 0}`;
        const body = this.empty() ? null : await this.png();
        await this.put(`layer${query}`, body);
      }
      this.sending = false;
    },
    async png() {
      // Chromium encodes between two frames, or a second later. On a page where nothing moves there are no frames.
      let frame;
      const ask = () => (frame = requestAnimationFrame(ask));
      ask();
      try {
        return await new Promise((done) => this.$refs.canvas.toBlob(done, "image/png"));
      } finally {
        cancelAnimationFrame(frame);
      }
    },
    empty() {
      if (this.mode === "sheet") return this.ink === "black" && !this.strokes.length;
      return this.strokes.length === this.strokes.findLastIndex((each) => each.clear) + 1;
    },
    async put(path, body) {
      try {
        const response = await fetch(`${this.url}/${path}`, { method: "PUT", body });
        if (!response.ok) this.$emit("refused", sentence(await response.text()));
      } catch {
        this.$emit("refused", "The playground does not answer. Start it again and reload this page.");
      }
    },
    sendFile(file) {
      return this.put("file", file);
    },
    choose() {
      const [file] = this.$refs.file.files;
      if (file) this.sendFile(file);
      this.$refs.file.value = "";
    },
    drop(event) {
      this.over = false;
      const [file] = event.dataTransfer.files;
      if (file) this.sendFile(file);
    },
  },
};

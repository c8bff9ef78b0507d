// Pictures on top of each other, with one slider that wipes from the first to the last.
export default {
  template: `
    <div class="compare" v-if="layers.length" :style="{ '--aspect': aspect }">
      <div class="compare-stage">
        <img
          v-for="(layer, i) in layers" :key="layer.label" :src="layer.url" :alt="layer.label" :style="wiped(i)"
          draggable="false" @load="loaded"
        />
      </div>
      <input
        v-if="layers.length > 1" v-model.number="at" type="range" min="0" :max="layers.length - 1" step="0.01"
        :aria-label="'From ' + layers.map((each) => each.label).join(' to ')" :aria-valuetext="named()"
      />
      <div class="compare-labels">
        <button v-for="(layer, i) in layers" type="button" :aria-pressed="Math.round(at) === i" @click="at = i">{{ layer.label }}</button>
      </div>
    </div>
  `,
  props: { layers: { type: Array, default: () => [] } },
  data: () => ({ at: 0, aspect: 1 }),
  watch: {
    // A new picture is shown; one that merely changed leaves the slider where it is.
    layers(now, before) {
      if (now.length === before.length) return;
      this.$nextTick(() => (this.at = Math.max(0, now.length - 1))); // the range input has its new end by then
    },
  },
  methods: {
    wiped(i) {
      const share = Math.min(1, Math.max(0, this.at - i + 1));
      return { clipPath: `inset(0 ${(1 - share) * 100}% 0 0)`, objectFit: this.layers[i].fit };
    },
    // The last picture gives the stage its shape, and the others are fitted into it.
    loaded({ target }) {
      if (!target.nextElementSibling) this.aspect = target.naturalWidth / target.naturalHeight;
    },
    named() {
      return this.layers[Math.round(this.at)]?.label ?? "";
    },
  },
};

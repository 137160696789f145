// Browsers start no worker from a folder (file:). The site's search, which is one, runs in a hidden frame there: its
// script sees `message` events and `postMessage` as in a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html>"; // without an address of its own, the frame is as this page to the browser
      const loaded = new Promise((done) => this.frame.addEventListener("load", done, { once: true }));
      this.inside = loaded.then(async () => {
        const { contentWindow: inside, contentDocument: page } = this.frame;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = page.createElement("script");
        script.src = new URL(url, location);
        await new Promise((done) => {
          script.onload = done;
          page.body.append(script);
        });
        return inside;
      });
      const attach = () => document.body.append(this.frame);
      document.body ? attach() : addEventListener("DOMContentLoaded", attach);
    }

    async postMessage(data) {
      const inside = await this.inside;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}

/* Browsers refuse workers to pages that were opened from a disk, and the search is one: there it runs in a frame. */
(function () {
  if (location.protocol !== "file:") return;
  class FrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      const source = new URL(address, document.baseURI).href.replace(/&/g, "&amp;").replace(/"/g, "&quot;");
      const answer = "postMessage=function(data){frameElement.answer(data)}";
      this.frame.answer = (data) => this.dispatchEvent(new MessageEvent("message", { data: data }));
      this.frame.srcdoc = "<script>" + answer + "<\/script><script src=\"" + source + "\"><\/script>";
      this.frame.addEventListener("load", () => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach((data) => this.hand(data));
      });
      document.documentElement.appendChild(this.frame);
    }
    hand(data) {
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data: data }));
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.hand(data);
    }
    terminate() {
      this.frame.remove();
    }
  }
  window.Worker = FrameWorker;
})();

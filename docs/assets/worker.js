/*
 * Browsers start no worker from a file, and the search is one. So when the site is opened as a file (and only then) a hidden frame
 * runs the worker's script; it speaks to the page as a worker does. What the theme would fetch from a network does the same.
 */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.body.appendChild(document.createElement("iframe"))
      this.frame.hidden = true
      this.ready = new Promise(done => (this.frame.onload = done))
      const speak = "postMessage = data => parent.postMessage(data, '*')"
      const fetchScripts = `importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(done => {
        const script = document.body.appendChild(document.createElement("script"))
        script.onload = done
        script.src = url
      })), Promise.resolve())`
      const inside = this.frame.contentDocument
      inside.open()
      inside.write(`<body><script>${speak}; ${fetchScripts}</` + `script><script src="${url}"></` + "script>")
      inside.close()
      addEventListener("message", event => {
        if (event.source !== this.frame.contentWindow) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}

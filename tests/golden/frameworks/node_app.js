// Express, Koa and Fastify with their instrumentation, each asked for what record.py expects of every framework.
const { NodeSDK } = require("@opentelemetry/sdk-node");
const { OTLPTraceExporter } = require("@opentelemetry/exporter-trace-otlp-proto");
const { HttpInstrumentation } = require("@opentelemetry/instrumentation-http");
const { ExpressInstrumentation } = require("@opentelemetry/instrumentation-express");
const { KoaInstrumentation } = require("@opentelemetry/instrumentation-koa");
const { FastifyOtelInstrumentation } = require("@fastify/otel");
const { trace } = require("@opentelemetry/api");

const fastifyOtel = new FastifyOtelInstrumentation({ registerOnInitialization: true });
const http_ = new HttpInstrumentation({ disableOutgoingRequestInstrumentation: true });
const sdk = new NodeSDK({
  traceExporter: new OTLPTraceExporter(),
  instrumentations: [http_, new ExpressInstrumentation(), new KoaInstrumentation(), fastifyOtel],
});
sdk.start();

// As their documentation has people do: on the span that is active where the user is known.
const nameUser = () => trace.getActiveSpan()?.setAttribute("user.id", "anna-4711");

const applications = {
  async express() {
    const app = require("express")();
    app.use((request, response, next) => (nameUser(), next()));
    app.get("/users/:id", (request, response) => response.json({}));
    app.get("/boom", (request, response) => response.status(500).end());
    return new Promise((resolve) => {
      const server = app.listen(0, "127.0.0.1", () => resolve([server.address().port, () => server.close()]));
    });
  },
  async koa() {
    const Koa = require("koa");
    const { Router } = require("@koa/router");
    const router = new Router();
    const app = new Koa();
    app.silent = true;
    app.use((context, next) => (nameUser(), next()));
    router.get("/users/:id", (context) => { context.body = {}; });
    router.get("/boom", () => { throw new Error("boom"); });
    app.use(router.routes());
    return new Promise((resolve) => {
      const server = app.listen(0, "127.0.0.1", () => resolve([server.address().port, () => server.close()]));
    });
  },
  async fastify() {
    const app = require("fastify")();
    app.addHook("onRequest", async () => { nameUser(); });
    app.get("/users/:id", async () => ({}));
    app.get("/boom", async () => { throw new Error("boom"); });
    await app.listen({ port: 0, host: "127.0.0.1" });
    return [app.server.address().port, () => app.close()];
  },
};

(async () => {
  const [port, close] = await applications[process.argv[2]]();
  for (const path of ["/users/17", "/missing/17", "/boom"]) await (await fetch(`http://127.0.0.1:${port}${path}`)).text();
  await close();
  await sdk.shutdown();
  process.exit(0);
})();

// The doors as the official NATS client for JavaScript sees them. Prints one JSON document.
//
//     mkdir -p /tmp/nats-js && cd /tmp/nats-js && npm install @nats-io/transport-node @nats-io/services
//     AGENTMESH_NATS_JS=/tmp/nats-js python -m pytest -q tests/doors/test_javascript.py
//
// or, against a mesh that runs: node tests/doors/javascript_client.cjs /tmp/nats-js nats://127.0.0.1:4222 default "Hello"

const { createRequire } = require("node:module");
const path = require("node:path");

const [folder, servers, tenant, prompt] = process.argv.slice(2);
const load = createRequire(path.join(folder, "package.json"));
const { connect, createInbox, headers } = load("@nats-io/transport-node");
const { Svcm } = load("@nats-io/services");

async function main() {
  const nc = await connect({ servers });
  const said = {};

  const found = [];
  for await (const info of await new Svcm(nc).client().info("llm-doors")) {
    found.push(...info.endpoints.map((endpoint) => endpoint.subject));
  }
  said.discovered = found.sort();

  const asked = { meta: { request_id: "js-1", labels: { a: "b" } }, prompt, params: { temperature: 0 } };
  const json = headers();
  json.set("Content-Type", "application/json");
  const reply = await nc.request("svc.ai.llm.v1.infer", JSON.stringify(asked), { timeout: 20000, headers: json });
  said.infer = reply.json();
  said.content_type = reply.headers.get("Content-Type");

  const refused = await nc.request("svc.ai.llm.v1.infer", '{"promt": "x"}', { timeout: 20000 });
  said.error = refused.json().error;
  said.service_error = [refused.headers.get("Nats-Service-Error-Code"), refused.headers.get("Nats-Service-Error")];

  const queued = await nc.request(
    `ai.gateway.requests.${tenant}`,
    JSON.stringify({ request_id: "js-2", prompt, schema_version: "1.0" }),
    { timeout: 20000 },
  );
  said.requests = queued.json();

  const inbox = createInbox();
  const subscription = nc.subscribe(inbox);
  nc.publish("svc.ai.llm.v1.infer", JSON.stringify({ prompt, params: { stream: true } }), { reply: inbox });
  said.chunks = [];
  for await (const message of subscription) {
    const chunk = message.json();
    said.chunks.push([chunk.index, chunk.output_text_delta ?? "", chunk.is_final]);
    if (chunk.is_final) {
      said.usage = chunk.usage;
      break;
    }
  }

  // With a window: whoever reads says how far it is, and the producer never runs ahead.
  const windowed = headers();
  windowed.set("Window", "2");
  const slow = createInbox();
  const slowly = nc.subscribe(slow);
  nc.publish("svc.ai.llm.v1.infer", JSON.stringify({ prompt, params: { stream: true } }), { reply: slow, headers: windowed });
  said.windowed = 0;
  for await (const message of slowly) {
    said.windowed += 1;
    if (message.json().is_final) {
      break;
    }
    nc.publish(message.reply, String(said.windowed));
  }

  await nc.close();
  console.log(JSON.stringify(said));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

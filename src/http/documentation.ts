import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import { stringify } from 'yaml';
import { fail } from '../errors';
import { namesEntityTag } from './if-none-match';
import { describeApi } from './openapi';

const HTML = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>DNS Agent Control Plane</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/favicon-32x32.png" sizes="32x32">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
`;

const ASSETS: Readonly<Record<string, string>> = {
  'swagger-ui.css': 'text/css; charset=utf-8',
  'swagger-ui-bundle.js': 'text/javascript; charset=utf-8',
  'favicon-32x32.png': 'image/png',
};

/** A text that is created once and sent to all clients. */
interface Text {
  readonly type: string;
  readonly body: Buffer;
  readonly etag: string;
}

/**
 * Serves the OpenAPI document at `/docs-json` and `/docs-yaml`, and Swagger UI at `/docs`. Each text is created at its first
 * request and kept as one buffer, so that an answer needs neither a copy nor an open file. `/` redirects browsers to
 * `/docs`. All links are relative, so that they work behind a path prefix.
 */
export function mountDocumentation(app: NestFastifyApplication): void {
  const http = app.getHttpAdapter().getInstance() as unknown as FastifyInstance;
  let described: ReturnType<typeof describeApi> | undefined;
  const describe = () => {
    described ??= describeApi(app);
    return described;
  };
  serve(http, '/docs', 'text/html; charset=utf-8', () => HTML);
  serve(http, '/docs-json', 'application/json; charset=utf-8', () => JSON.stringify(describe()));
  serve(http, '/docs-yaml', 'text/yaml; charset=utf-8', () =>
    stringify(describe(), { aliasDuplicateObjects: false }),
  );
  serve(http, '/docs/start.js', 'text/javascript; charset=utf-8', () => `(${startPage})();\n`);
  for (const [name, type] of Object.entries(ASSETS)) {
    serve(http, `/docs/${name}`, type, () =>
      readFileSync(join(dirname(require.resolve('swagger-ui-dist/package.json')), name)),
    );
  }
  http.get('/', (request, reply) => {
    reply.header('vary', 'accept');
    if (!wantsHtml(request.headers.accept)) throw fail('ERR_NOT_FOUND');
    return reply.code(302).header('location', 'docs').send();
  });
  // The page's own links are relative to `/docs`.
  http.get('/docs/', (_request, reply) => reply.code(308).header('location', '../docs').send());
}

/** Whether an `Accept` header names HTML, as browsers do. A wildcard, as curl sends it, is not enough. */
const wantsHtml = (accept = ''): boolean =>
  accept.split(',').some((range) => /^\s*text\/html\s*(?:;(?!\s*q=0(?:\.0*)?\s*$).*)?$/i.test(range));

function serve(http: FastifyInstance, path: string, type: string, make: () => string | Buffer): void {
  let text: Text | undefined;
  http.get(path, (request, reply) => {
    if (!text) {
      const body = Buffer.from(make());
      text = { type, body, etag: `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"` };
    }
    reply.header('etag', text.etag).header('cache-control', 'no-cache');
    if (namesEntityTag(request.headers['if-none-match'], text.etag)) return reply.code(304).send();
    return reply.type(text.type).send(text.body);
  });
}

/** Runs in the browser: its source is sent, so it must not use anything outside itself. */
function startPage(): void {
  // biome-ignore lint/suspicious/noExplicitAny: Swagger UI has no types for its plugins
  const { SwaggerUIBundle } = globalThis as any;

  /** Shows "Execute" at once for reads; operations that change the fleet need "Try it out" first. */
  const confirmChanges = () => ({
    wrapComponents: {
      // biome-ignore lint/suspicious/noExplicitAny: as above
      OperationContainer: (original: any) =>
        class extends original {
          // biome-ignore lint/suspicious/noExplicitAny: as above
          mapStateToProps(state: unknown, props: any): unknown {
            const tryItOutEnabled = props.op.getIn(['operation', 'x-changes-fleet']) !== true;
            const getConfigs = () => ({ ...props.getConfigs(), tryItOutEnabled });
            return super.mapStateToProps(state, { ...props, getConfigs });
          }
        },
    },
  });

  /** Puts the id of the authorized agent into the examples of its requests. */
  const fillInAgentId = () => {
    const withId = (part: unknown, id: number): unknown => {
      if (Array.isArray(part)) return part.map((item) => withId(item, id));
      if (typeof part !== 'object' || part === null) return part;
      return Object.fromEntries(
        Object.entries(part).map(([name, value]) => {
          if (name !== 'agent_id') return [name, withId(value, id)];
          return [name, typeof value === 'number' ? id : { ...value, example: id }];
        }),
      );
    };
    return {
      statePlugins: {
        auth: {
          wrapActions: {
            // biome-ignore lint/suspicious/noExplicitAny: as above
            authorize: (original: any, system: any) => (payload: any) => {
              const id = Number(payload.agentId?.value);
              if (Number.isSafeInteger(id) && id > 0) {
                const document = system.specSelectors.specJson().toJS();
                system.specActions.updateJsonSpec(withId(document, id));
                // Without this, bodies that were already filled in keep the old id.
                for (const [path, operations] of Object.entries<Record<string, object>>(document.paths))
                  for (const [method, operation] of Object.entries<{ 'x-role'?: string }>(operations))
                    if (operation['x-role'] === 'agent')
                      system.oas3Actions.clearRequestBodyValue({ pathMethod: [path, method] });
              }
              return original(payload);
            },
          },
        },
      },
    };
  };

  SwaggerUIBundle({
    url: 'docs-json',
    dom_id: '#swagger-ui',
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [confirmChanges, fillInAgentId],
    layout: 'BaseLayout',
    deepLinking: true,
    displayRequestDuration: true,
    persistAuthorization: false,
    tryItOutEnabled: true,
    validatorUrl: null,
  });
}

import helmet, { type FastifyHelmetOptions } from '@fastify/helmet';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import {
  DocumentBuilder,
  getSchemaPath,
  type OpenAPIObject,
  type OperationObject,
  type ParameterObject,
  type SchemaObject,
  SwaggerModule,
} from '@nestjs/swagger';
import { Clock, toTimestamp } from '../clock';
import { ErrorEnvelope } from './api-errors';
import { toApiError, toEnvelope } from './error-filter';

/** The document's own version: it changes when the contract does. */
const CONTRACT_VERSION = '1.0.0';

/** Describes every route of the application. */
export function describeApi(app: NestFastifyApplication): OpenAPIObject {
  const config = new DocumentBuilder()
    .setTitle('DNS Agent Control Plane')
    .setDescription(
      'Agents register, heartbeat, lease work, extend leases, report observations, push metrics and fetch signed ' +
        'configuration. Operators enqueue tasks and watch the fleet. Every agent path exists twice: at the root and ' +
        'under `/v1/agents`. Errors are always `{error, message, retryable, details?}`.',
    )
    .setVersion(CONTRACT_VERSION)
    .addApiKey(
      { type: 'apiKey', in: 'header', name: 'X-Agent-Id', description: "The agent's id." },
      'agentId',
    )
    .addApiKey(
      { type: 'apiKey', in: 'header', name: 'X-Agent-Token', description: "The agent's token." },
      'agentToken',
    )
    .addBearerAuth({ type: 'http', scheme: 'bearer', description: "An operator's token." }, 'operator')
    .build();
  const document = SwaggerModule.createDocument(app, config, {
    operationIdFactory: (controller, method) => `${controller.replace(/Controller$/, '')}_${method}`,
  });
  for (const { get, post, put, delete: remove } of Object.values(document.paths)) {
    for (const operation of [get, post, put, remove]) if (operation) refine(operation);
  }
  return document;
}

/** What holds for every operation and stands above no route. */
function refine(operation: OperationObject): void {
  operation.parameters = (operation.parameters as ParameterObject[] | undefined)?.map(withoutExample);
  if (operation.requestBody) operation.responses = { ...operation.responses, ...unfitBodies() };
}

/** The page fills examples in: with those of optional parameters, every list that is tried would be a filtered one. */
function withoutExample(parameter: ParameterObject): ParameterObject {
  const { example, ...schema } = parameter.schema as SchemaObject;
  if (parameter.required || example === undefined) return parameter;
  const hint = schema.default === undefined && !schema.enum ? [`For example \`${example}\`.`] : [];
  return { ...parameter, schema, description: [parameter.description, ...hint].join(' ') };
}

/** How a body is refused before any route sees it. */
function unfitBodies(): OperationObject['responses'] {
  const refusals = ['FST_ERR_CTP_BODY_TOO_LARGE', 'FST_ERR_CTP_INVALID_MEDIA_TYPE'].map((code) =>
    toApiError({ code }),
  );
  return Object.fromEntries(
    refusals.map((error) => [
      error.status,
      {
        description: `\`${error.code}\`: ${error.message}`,
        content: {
          'application/json': {
            schema: { $ref: getSchemaPath(ErrorEnvelope) },
            examples: { [error.code]: { value: toEnvelope(error) } },
          },
        },
      },
    ]),
  );
}

/** Security headers of the page; a deployment without TLS must work, so nothing is upgraded. */
const PAGE_HEADERS: FastifyHelmetOptions = {
  strictTransportSecurity: false,
  contentSecurityPolicy: {
    useDefaults: false,
    directives: {
      defaultSrc: ["'self'"],
      styleSrc: ["'self'", "'unsafe-inline'"],
      imgSrc: ["'self'", 'data:'],
      frameAncestors: ["'none'"],
      objectSrc: ["'none'"],
    },
  },
};

/** The document with the present as the example of when metrics were measured: an older one would be refused. */
function withPresent(document: OpenAPIObject, nowMs: number): OpenAPIObject {
  const request = document.components?.schemas?.MetricsRequest as SchemaObject | undefined;
  Object.assign(request?.properties?.timestamp ?? {}, { example: toTimestamp(nowMs) });
  return document;
}

/** Serves the document: Swagger UI at `/docs`, the document at `/docs-json` and `/docs-yaml`. */
export async function mountDocs(app: NestFastifyApplication): Promise<void> {
  const http = app.getHttpAdapter().getInstance();
  // Only what a browser shows needs them: worked out for every heartbeat they would cost more than the rest of it.
  http.addHook('onRoute', (route) => {
    if (route.url.startsWith('/docs')) route.helmet = PAGE_HEADERS;
  });
  await app.register(helmet, { global: false });
  SwaggerModule.setup('docs', app, () => describeApi(app), {
    jsonDocumentUrl: 'docs-json',
    yamlDocumentUrl: 'docs-yaml',
    patchDocumentOnRequest: (_request, _response, document) => withPresent(document, app.get(Clock).now()),
    swaggerOptions: { persistAuthorization: false, displayRequestDuration: true, tryItOutEnabled: true },
  });
}

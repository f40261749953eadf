import helmet, { type FastifyHelmetOptions } from '@fastify/helmet';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { DocumentBuilder, type OpenAPIObject, SwaggerModule } from '@nestjs/swagger';

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
  return SwaggerModule.createDocument(app, config, {
    operationIdFactory: (controller, method) => `${controller.replace(/Controller$/, '')}_${method}`,
  });
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
    swaggerOptions: { persistAuthorization: false, displayRequestDuration: true, tryItOutEnabled: true },
  });
}

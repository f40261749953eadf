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

/** Serves the document: Swagger UI at `/docs`, the document at `/docs-json` and `/docs-yaml`. */
export function mountDocs(app: NestFastifyApplication): void {
  SwaggerModule.setup('docs', app, () => describeApi(app), {
    jsonDocumentUrl: 'docs-json',
    yamlDocumentUrl: 'docs-yaml',
    swaggerOptions: { persistAuthorization: false, displayRequestDuration: true, tryItOutEnabled: true },
  });
}

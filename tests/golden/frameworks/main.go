// ServeMux and gin, each asked for what record.py expects of every framework: `go run . servemux`, `go run . gin`.
package main

import (
	"context"
	"net"
	"net/http"
	"os"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/contrib/instrumentation/github.com/gin-gonic/gin/otelgin"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func nameUser(request *http.Request) {
	trace.SpanFromContext(request.Context()).SetAttributes(attribute.String("user.id", "anna-4711"))
}

func serveMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) { nameUser(r) })
	mux.HandleFunc("GET /boom", func(w http.ResponseWriter, r *http.Request) { nameUser(r); w.WriteHeader(500) })
	// Behind the mux, the pattern that matched is known: the documented way to have it in the name.
	return otelhttp.NewHandler(mux, "server", otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
		if r.Pattern != "" {
			return r.Pattern
		}
		return r.Method
	}))
}

func ginEngine() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(otelgin.Middleware("shop"))
	engine.GET("/users/:id", func(c *gin.Context) { nameUser(c.Request) })
	engine.GET("/boom", func(c *gin.Context) { nameUser(c.Request); c.Status(500) })
	return engine
}

func main() {
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		panic(err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	handler := map[string]func() http.Handler{"servemux": serveMux, "gin": ginEngine}[os.Args[1]]()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, handler)
	for _, path := range []string{"/users/17", "/missing/17", "/boom"} {
		if _, err := http.Get("http://" + listener.Addr().String() + path); err != nil {
			panic(err)
		}
	}
	provider.Shutdown(ctx)
}
